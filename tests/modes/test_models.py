"""Real layers: both modes against a plain unroll, replayed draws, symmetric Hessians, batching without a warning."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

from hyperopt_cli import Forward, Problem, hypergradient, models
from hyperopt_cli.dynamics.derivatives import gradient_and_pullback, push_columns
from hyperopt_cli.instantiate.experiment import seeded
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Hyper
from tests.reference import differences, unroll

CPU = torch.device("cpu")
SHAPE, CLASSES, STEPS = (1, 8, 8), 3, 4


class Attention(nn.Module):
    """One transformer block over the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        mixed = rows + self.attend(rows, rows, rows, need_weights=False)[0]
        out: Tensor = self.head(self.norm(mixed).mean(dim=1))
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: models.mlp(SHAPE, CLASSES, hidden=(6,), activation="tanh"),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
    "group norm": lambda: models.convnet(SHAPE, CLASSES, widths=(4, 6)),
    "batch norm": lambda: models.convnet(SHAPE, CLASSES, widths=(4, 6), norm="batch"),
    "dropout": lambda: models.mlp(SHAPE, CLASSES, hidden=(10,), activation="tanh", dropout=0.4),
    "attention": Attention,
}


class Batch(NamedTuple):
    inputs: Tensor
    targets: Tensor
    seed: int


def batch_of(t: int) -> Batch:
    generator = torch.Generator().manual_seed(100 + t)
    inputs = torch.randn(9, *SHAPE, generator=generator, dtype=torch.float64)
    return Batch(inputs, torch.randint(0, CLASSES, (9,), generator=generator), t)


def made(name: str) -> nn.Module:
    with seeded(3, CPU):
        model = MODELS[name]().double().train()
    models.batch_norm.use_batch_statistics(model)
    return model


def problem_of(model: nn.Module) -> Problem:
    def loss(params: Params, batch: Batch) -> Tensor:
        with seeded(batch.seed, CPU):
            return cross_entropy(functional_call(model, params, (batch.inputs,)), batch.targets)

    held_out = batch_of(1000)
    return Problem(
        {name: w.detach() for name, w in model.named_parameters()},
        lambda params, hyper, batch: loss(params, batch),
        lambda params, hyper: loss(params, held_out),
        batch_of,
        SGD(),
        STEPS,
    )


HYPER: Hyper = {
    name: torch.tensor(value, dtype=torch.float64)
    for name, value in {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}.items()
}


@pytest.mark.parametrize("mode", ["forward", "reverse", Forward(engine="reverse_over_reverse")])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_plain_unroll(name: str, mode: str | Forward) -> None:
    problem = problem_of(made(name))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, want, _ = unroll("sgd", problem, HYPER)
    got = hypergradient(problem, HYPER, mode)
    torch.testing.assert_close(got.value, value, rtol=1e-10, atol=0)
    torch.testing.assert_close(got.grad, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["dropout", "attention"])
def test_equals_central_differences(name: str) -> None:
    """Every evaluation drops the same units, or the differences would be noise."""
    problem = problem_of(made(name))
    want = differences(lambda hyper: hypergradient(problem, hyper, "reverse").value, HYPER)
    torch.testing.assert_close(hypergradient(problem, HYPER).grad, want, rtol=1e-6, atol=1e-7)


def test_dropout_draws_anew_in_every_step() -> None:
    """With one mask for all steps the run would end elsewhere."""
    problem = problem_of(made("dropout"))
    frozen = replace(problem, batch=lambda t: batch_of(t)._replace(seed=0))
    ends = [hypergradient(p, HYPER, "reverse").value for p in (problem, frozen)]
    assert float((ends[0] - ends[1]).abs()) > 1e-4


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_dropout_leaves_the_global_generator_alone(mode: str) -> None:
    before = torch.get_rng_state()
    hypergradient(problem_of(made("dropout")), HYPER, mode)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_no_buffer_moves(mode: str) -> None:
    """Running statistics of layers that keep them without being asked to would move with every evaluation."""
    model = made("batch norm")
    model.register_buffer("counter", torch.zeros(2, dtype=torch.float64))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    hypergradient(problem_of(model), HYPER, mode)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def asymmetry(push: Callable[[Params], Params], pull: Callable[[Params], Params], params: Params) -> float:
    """|u.(H v) - v.(H u)| over its size, with H v by one product and H u by the other."""
    generator = torch.Generator().manual_seed(8)
    u, v = ({n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in params.items()} for _ in range(2))
    one, other = (torch.stack([(x[n] * y[n]).sum() for n in x]).sum() for x, y in ((u, push(v)), (v, pull(u))))
    return float((one - other).abs() / one.abs())


@pytest.mark.parametrize("name", ["layer norm", "batch norm", "attention"])
def test_the_products_of_both_engines_are_one_symmetric_matrix(name: str) -> None:
    problem = problem_of(made(name))
    params = dict(problem.init)  # type: ignore[arg-type]

    def loss(w: Params, at: StepHyper) -> Tensor:
        return problem.inner_loss(w, at, batch_of(0))

    def push(v: Params) -> Params:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            _, dot = push_columns(grad(loss), (params, {}), ({n: x[None] for n, x in v.items()}, {}))
        return {n: x[0] for n, x in dot.items()}

    def pull(u: Params) -> Params:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return gradient_and_pullback(loss, params, {})[2](u)[0]

    assert asymmetry(push, pull, params) < 1e-12
    assert asymmetry(push, push, params) < 1e-12
    assert asymmetry(pull, pull, params) < 1e-12


def test_the_symmetry_bites_on_a_product_that_forgets_the_statistics() -> None:
    """A normalisation whose statistics are taken as constants in the second derivative, as a wrong engine does."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    params = {"w": torch.randn(5, 4, generator=generator, dtype=torch.float64)}

    def first(w: Tensor, frozen: bool) -> Tensor:
        """The gradient of mean(tanh(normalised x w)), by hand."""
        z = x @ w
        scale = (z.var(dim=0, correction=0) + 1e-5).sqrt()
        scale = scale.detach() if frozen else scale
        hat = (z - z.mean(dim=0)) / scale
        back = (1 - torch.tanh(hat) ** 2) / hat.numel()
        return x.T @ ((back - back.mean(dim=0) - hat * (back * hat).mean(dim=0)) / scale)

    def product(frozen: bool) -> Callable[[Params], Params]:
        def push(v: Params) -> Params:
            return {"w": torch.func.jvp(lambda w: first(w, frozen), (params["w"],), (v["w"],))[1]}

        return push

    assert asymmetry(product(False), product(False), params) < 1e-12
    assert asymmetry(product(True), product(True), params) > 1e-3


SHIPPED: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: models.logistic(SHAPE, CLASSES),
    "mlp": lambda: models.mlp(SHAPE, CLASSES, hidden=(6,), dropout=0.2),
    "convnet": lambda: models.convnet(SHAPE, CLASSES, widths=(4, 4)),
    "convnet, batch": lambda: models.convnet(SHAPE, CLASSES, widths=(4, 4), norm="batch"),
    "resnet": lambda: models.resnet(SHAPE, CLASSES, depth=8),
    "wide_resnet": lambda: models.wide_resnet(SHAPE, CLASSES, depth=10),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_columns_are_batched_without_a_performance_warning(name: str) -> None:
    with seeded(0, CPU):
        model = SHIPPED[name]().double().train()
    models.batch_norm.use_batch_statistics(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")
        got = hypergradient(replace(problem_of(model), steps=2), HYPER, "forward")
    assert got.stats["num_hvps"] == len(HYPER) * 2
