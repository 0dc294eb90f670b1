"""Losses against `torch.nn.functional`, and their derivatives in what may be tuned."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyperopt_cli.task.losses import DIFFERENTIABLE, cross_entropy, hinge_embedding, huber, mse, output, smooth_l1


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


TARGETS = torch.tensor([0, 3, 1, 1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_torchs(logits: Tensor, smoothing: float) -> None:
    want = functional.cross_entropy(logits, TARGETS, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, TARGETS, smoothing), want, rtol=1e-13, atol=0)


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    assert float(cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([1]))) == 2e4


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_derivative_in_label_smoothing_equals_central_differences(logits: Tensor, smoothing: float) -> None:
    leaf = torch.tensor(smoothing, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(cross_entropy(logits, TARGETS, leaf), leaf)
    sides = [cross_entropy(logits, TARGETS, smoothing + step) for step in (1e-5, -1e-5)]
    torch.testing.assert_close(got, (sides[0] - sides[1]) / 2e-5, rtol=1e-8, atol=1e-9)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASSES = torch.tensor([[0, 2, -100], [1, 1, 2], [-100, -100, 0]])  # [B, T]
PROBABILITIES = drawn(5, 3, 4, 3).softmax(dim=1)
WEIGHT = torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=torch.float64)
# outputs, targets, arguments that a recipe may fix
OF_CLASSES = [
    (drawn(0, 3, 4, 3), CLASSES, {}),
    (drawn(0, 3, 4, 3), CLASSES, {"weight": WEIGHT}),
    (drawn(0, 3, 4, 3), CLASSES.clamp_min(0), {"ignore_index": 2, "weight": WEIGHT}),
    (drawn(0, 3, 4, 3), CLASSES, {"reduction": "sum"}),
    (drawn(0, 3, 4, 3), CLASSES, {"reduction": "sum", "weight": WEIGHT}),
    (drawn(0, 3, 4, 3), PROBABILITIES, {}),
    (drawn(0, 3, 4, 3), PROBABILITIES, {"weight": WEIGHT}),
    (drawn(0, 3, 4, 3), PROBABILITIES, {"weight": WEIGHT, "reduction": "sum"}),
]
SIDES = torch.tensor([1, -1, -1, 1, 0, -1])
TORCHS = [
    *(
        (functional.cross_entropy, outputs, targets, fixed, "label_smoothing", 0.2)
        for outputs, targets, fixed in OF_CLASSES
    ),
    *(
        (function, drawn(1, 5, 2), drawn(2, 5, 2), fixed, name, at)
        for function, name in ((functional.smooth_l1_loss, "beta"), (functional.huber_loss, "delta"))
        for fixed, at in (({}, 0.7), ({"reduction": "sum"}, 1.6))
    ),
    (functional.hinge_embedding_loss, drawn(1, 6), torch.tensor([1, -1, -1, 1, 0, -1]), {}, "margin", 0.8),
    (
        functional.hinge_embedding_loss,
        drawn(1, 6),
        torch.tensor([1, -1, -1, 1, 0, -1]),
        {"reduction": "sum"},
        "margin",
        1.5,
    ),
]


@pytest.mark.parametrize(("function", "outputs", "targets", "fixed", "name", "at"), TORCHS)
def test_what_torch_takes_as_a_number_is_differentiated_here(
    function: Any, outputs: Tensor, targets: Tensor, fixed: dict[str, Any], name: str, at: float
) -> None:
    own = DIFFERENTIABLE[function]
    leaf = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    x = outputs.clone().requires_grad_()
    value = own(x, targets, **fixed, **{name: leaf})
    by_leaf, by_outputs = torch.autograd.grad(value, (leaf, x))

    def torchs(at: float) -> Tensor:
        return function(outputs, targets, **fixed, **{name: at})

    torch.testing.assert_close(value, torchs(at), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(by_leaf, (torchs(at + 1e-5) - torchs(at - 1e-5)) / 2e-5, rtol=1e-8, atol=1e-8)
    y = outputs.clone().requires_grad_()
    (want,) = torch.autograd.grad(function(y, targets, **fixed, **{name: at}), y)
    torch.testing.assert_close(by_outputs, want, rtol=1e-12, atol=1e-14)


def test_kinks_are_where_torch_has_them() -> None:
    at = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for own, torchs in ((smooth_l1, functional.smooth_l1_loss), (huber, functional.huber_loss)):
        x, y = at.clone().requires_grad_(), at.clone().requires_grad_()
        got, want = own(x, torch.zeros_like(x)), torchs(y, torch.zeros_like(y))  # type: ignore[operator]
        torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(want, y))
    assert float(hinge_embedding(torch.tensor([1.0]), torch.tensor([-1]))) == 0.0


def test_mse_is_torchs() -> None:
    outputs, targets = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 1.0])
    assert torch.equal(mse(outputs, targets), functional.mse_loss(outputs, targets))


def test_mse_takes_a_column_as_a_vector_and_does_not_broadcast_it() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0.0, 2.0, 1.0])
    assert float(mse(outputs, targets)) == pytest.approx(10 / 3)


def test_mse_refuses_shapes_that_do_not_pair_up() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        mse(torch.zeros(3, 2), torch.zeros(3))


def test_output_is_the_mean_of_what_the_model_returns() -> None:
    assert float(output(torch.tensor([1.0, 3.0]))) == 2.0
    assert float(output(torch.tensor(5.0), None)) == 5.0
