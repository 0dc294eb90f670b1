"""Published and checked values, in float64."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Problem, hypergradient
from hyperopt_cli.optimizers import SGD, Adam, InnerOptimizer
from hyperopt_cli.optimizers.base import Params, Slots, StepHyper
from hyperopt_cli.optimizers.base import zeros as empty
from hyperopt_cli.problem import Hyper
from tests.reference import unroll

BOTH = pytest.mark.parametrize("mode", ["forward", "reverse"])


def numbers(**given: float) -> Hyper:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}


@dataclass(frozen=True)
class Maclaurin(InnerOptimizer):
    """v <- beta v - (1 - beta) g, x <- x + alpha v: the convention of Maclaurin et al. 2015."""

    elementwise: ClassVar[bool] = True
    alpha: float = 0.1
    beta: float = 0.9

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        return {"velocity": empty(params)}

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        new: Params = {}
        velocity: Params = {}
        for name, x in params.items():
            a = self.arguments(hyper, name, x)
            velocity[name] = a.beta * slots["velocity"][name] - (1 - a.beta) * grads[name]
            new[name] = x + a.alpha * velocity[name]
        return new, {"velocity": velocity}


def square(optimizer: InnerOptimizer, steps: int) -> Problem:
    """L = E = x^2 from x = 1."""
    return Problem(
        {"x": torch.tensor(1.0, dtype=torch.float64)},
        lambda params, hyper, batch: params["x"] ** 2,
        lambda params, hyper: params["x"] ** 2,
        lambda t: None,
        optimizer,
        steps,
    )


def bowl(optimizer: InnerOptimizer, steps: int) -> Problem:
    """L = E = x' A x / 2 with A = diag(1, 2, 1/2), from (1, -2, 3)."""
    a = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def value(params: Params, *rest: Any) -> Tensor:
        return (a * params["x"] ** 2).sum() / 2

    return Problem(
        {"x": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)}, value, value, lambda t: None, optimizer, steps
    )


def assert_equals(got: Tensor, want: float) -> None:
    assert float(got) == pytest.approx(want, rel=1e-9, abs=1e-12)


@BOTH
def test_maclaurins_momentum(mode: str) -> None:
    got = hypergradient(square(Maclaurin(), 50), numbers(alpha=0.1, beta=0.9), mode)
    assert_equals(got.value, 5.466771374686851e-03)
    assert_equals(got.grad["alpha"], -9.231620854795804e-02)
    assert_equals(got.grad["beta"], 3.561153435541736e-01)


@BOTH
def test_heavy_ball(mode: str) -> None:
    got = hypergradient(square(SGD(), 20), numbers(lr=0.05, momentum=0.9), mode)
    assert_equals(got.value, 0.1187956501430148)
    assert_equals(got.grad["lr"], -2.544656388473307)
    assert_equals(got.grad["momentum"], 2.579316279643028)


@BOTH
def test_gradient_descent(mode: str) -> None:
    got = hypergradient(square(SGD(), 20), numbers(lr=0.1), mode)
    assert_equals(got.grad["lr"], -20 * 2**2 * (1 - 2 * 0.1) ** 39)
    assert_equals(got.grad["lr"], -1.3292279957849188e-02)


# figures are known to the digits that are written; the unroll gives the rest
BOWL: dict[str, tuple[str, Problem, Hyper, str, float]] = {
    "momentum at 0": ("sgd", bowl(SGD(lr=0.1), 10), numbers(momentum=0.0), "momentum", -1.19885),
    "momentum at 1/2": ("sgd", bowl(SGD(lr=0.1), 10), numbers(momentum=0.5), "momentum", -1.302642),
    "weight decay at 0": (
        "sgd",
        bowl(SGD(lr=0.1, momentum=0.9), 10),
        numbers(weight_decay=0.0),
        "weight_decay",
        1.89578,
    ),
    "weight decay at 1/10": (
        "sgd",
        bowl(SGD(lr=0.1, momentum=0.9), 10),
        numbers(weight_decay=0.1),
        "weight_decay",
        2.230656,
    ),
    "beta2, 1 step": ("adam", bowl(Adam(lr=0.1), 1), numbers(beta2=0.999), "beta2", 0.0),
    "beta2, 5 steps": ("adam", bowl(Adam(lr=0.1), 5), numbers(beta2=0.999), "beta2", 0.108562),
    "beta2, 20 steps": ("adam", bowl(Adam(lr=0.1), 20), numbers(beta2=0.999), "beta2", 0.848784),
    "beta2, 100 steps": ("adam", bowl(Adam(lr=0.1), 100), numbers(beta2=0.999), "beta2", 0.00745411),
}


@BOTH
@pytest.mark.parametrize("case", BOWL)
def test_the_bowl(case: str, mode: str) -> None:
    rule, problem, hyper, name, figure = BOWL[case]
    got = hypergradient(problem, hyper, mode).grad[name]
    assert float(got) == pytest.approx(figure, rel=5e-6, abs=1e-9)
    assert float(got) == pytest.approx(float(unroll(rule, problem, hyper)[1][name]), rel=1e-9, abs=1e-9)


@BOTH
def test_ragged_chunks_equal_one_batch(mode: str) -> None:
    """10 points of least squares in chunks of 3, 3, 3 and 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(10, generator=generator, dtype=torch.float64)

    def loss(params: Params, hyper: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (batch[0] @ params["w"] - batch[1]).square().mean()

    def problem(chunks: list[Tensor]) -> Problem:
        outer = [((x[i], y[i]), len(i) / 10) for i in chunks]
        start = {"w": torch.zeros(4, dtype=torch.float64)}
        return Problem(start, loss, loss, lambda t: (x, y), SGD(), 8, None, outer)

    hyper, index = numbers(lr=0.1, momentum=0.5, weight_decay=0.1), torch.arange(10)
    ragged = hypergradient(problem([index[:3], index[3:6], index[6:9], index[9:]]), hyper, mode)
    whole = hypergradient(problem([index]), hyper, mode)
    torch.testing.assert_close(ragged.value, whole.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(ragged.grad, whole.grad, rtol=1e-12, atol=0)
