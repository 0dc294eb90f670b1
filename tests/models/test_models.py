"""Every model that ships: shapes, sizes, and second derivatives in forward order against double backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import cross_entropy

from hyperopt_cli.models import convnet, logistic, mlp, quadratic, resnet, wide_resnet

SMALL = (1, 8, 8)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: logistic(SMALL, 3),
    "mlp": lambda: mlp(SMALL, 3, hidden=(7, 5), activation="tanh"),
    "convnet-group": lambda: convnet(SMALL, 3, widths=(4, 6)),
    "convnet-batch": lambda: convnet(SMALL, 3, widths=(4, 6), norm="batch"),
    "convnet-none": lambda: convnet(SMALL, 3, widths=(4, 6), norm="none"),
    "resnet": lambda: resnet(SMALL, 3, depth=8, norm="group"),
    "wide_resnet": lambda: wide_resnet(SMALL, 3, depth=10, norm="group"),
    "resnet-batch": lambda: resnet(SMALL, 3, depth=8),
    "wide_resnet-batch": lambda: wide_resnet(SMALL, 3, depth=10),
}


def loss_of(model: nn.Module, buffers: dict[str, Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
    inputs = torch.randn(6, *SMALL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(params: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(model, {**params, **buffers}, (inputs,)), targets)

    return loss


@pytest.mark.parametrize("name", MODELS)
def test_forward_over_reverse_equals_double_backward(name: str) -> None:
    from hyperopt_cli.models.batch_norm import use_batch_statistics

    torch.manual_seed(0)
    model = MODELS[name]().double()
    use_batch_statistics(model)
    loss = loss_of(model, dict(model.named_buffers()))
    params = {k: v.detach() + 0.1 * torch.randn_like(v) for k, v in model.named_parameters()}
    columns = {k: torch.randn(2, *v.shape, dtype=v.dtype) for k, v in params.items()}

    forward = vmap(lambda v: jvp(grad(loss), (params,), (v,))[1])(columns)

    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    first = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    for column in range(2):
        product = sum((g * columns[k][column]).sum() for g, k in zip(first, leaves, strict=True))
        assert isinstance(product, Tensor)
        back = torch.autograd.grad(product, list(leaves.values()), retain_graph=True, materialize_grads=True)
        for expected, key in zip(back, leaves, strict=True):
            torch.testing.assert_close(forward[key][column], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 9, 17)])
@pytest.mark.parametrize("model", [logistic, mlp, convnet, resnet, wide_resnet])
def test_one_logit_comes_out_for_each_class(model: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    assert model(input_shape=shape, num_classes=7)(torch.zeros(2, *shape)).shape == (2, 7)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_wrn_16_1_has_the_parameters_of_the_paper() -> None:
    assert count(wide_resnet((3, 32, 32), 10)) == 175_066


def test_wrn_28_10_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        assert round(count(wide_resnet((3, 32, 32), 10, depth=28, widen_factor=10)) / 1e6, 1) == 36.5


def test_resnet_20_has_the_parameters_of_the_paper() -> None:
    assert count(resnet((3, 32, 32), 10)) == 269_722


def test_quadratic_is_half_the_weighted_squares() -> None:
    model = quadratic([2.0, 0.1], [1.0, 3.0])
    assert model().item() == pytest.approx((2.0 * 1 + 0.1 * 9) / 2, rel=1e-15)
    assert model(torch.zeros(5)).shape == ()


def test_dropout_is_off_in_evaluation_mode() -> None:
    model = mlp(SMALL, 3, dropout=0.5)
    inputs = torch.randn(4, *SMALL)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet((3, 32, 32), 10, depth=19), r"depth = 19: allowed is 6 n \+ 2, that is 8, 14, 20"),
        (lambda: wide_resnet((3, 32, 32), 10, depth=4), r"depth = 4: allowed is 6 n \+ 4, that is 10, 16"),
        (lambda: wide_resnet((3, 32, 32), 10, widen_factor=0), "widen_factor = 0"),
        (lambda: convnet((3, 32, 32), 10, norm="layer"), "norm = 'layer': allowed are 'group', 'batch', 'none'"),  # type: ignore[arg-type]
        (lambda: convnet((64,), 10), r"input_shape = \(64,\): allowed is \(channels, height, width\)"),
        (lambda: convnet((3, 8, 8), 10, widths=()), r"widths = \(\): at least one"),
        (lambda: mlp((4,), 2, activation="rlu"), "activation = 'rlu': allowed are 'relu'"),
        (lambda: mlp((4,), 2, hidden=(0,)), r"hidden = \(0,\)"),
        (lambda: quadratic([1.0], [1.0, 2.0]), "1 eigenvalues and a start of 2 numbers"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
