"""Update rules that a user writes: both modes give what backpropagation through a plain loop gives."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Problem, hypergradient
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers import InnerOptimizer
from hyperopt_cli.optimizers.base import WEIGHTS, Arguments, Coupling, Params, Slots, StepHyper
from hyperopt_cli.problem import Hyper
from tests.cases import net_problem, scaled_init


@dataclass(frozen=True)
class Saturated(InnerOptimizer):
    """w - lr tanh(g / width), elementwise."""

    elementwise: ClassVar[bool] = True
    lr: float = 0.1
    width: float = 1.0

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        new = {}
        for name, w in params.items():
            a = self.arguments(hyper, name, w)
            new[name] = w - a.lr * torch.tanh(grads[name] / a.width)
        return new, slots


@dataclass(frozen=True)
class Normalised(InnerOptimizer):
    """w - lr g / |g|, each tensor by its own norm."""

    lr: float = 0.1

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        new = {}
        for name, w in params.items():
            new[name] = w - self.arguments(hyper, name, w).lr * grads[name] / grads[name].square().sum().sqrt()
        return new, slots


@dataclass(frozen=True)
class ScheduleFree(InnerOptimizer):
    """z descends, x averages it, the gradient is taken between the two, and x is the result."""

    elementwise: ClassVar[bool] = True
    lr: float = 0.1
    between: float = 0.9
    weight: float = 0.2

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        return {"average": dict(params)}

    def gradient_at(self, params: Params, slots: Slots, hyper: StepHyper, step: int) -> Params:
        points = {}
        for name, z in params.items():
            between = self.arguments(hyper, name, z).between
            points[name] = (1 - between) * z + between * slots["average"][name]
        return points

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        new: Params = {}
        average: Params = {}
        for name, z in params.items():
            a = self.arguments(hyper, name, z)
            new[name] = z - a.lr * grads[name]
            average[name] = (1 - a.weight) * slots["average"][name] + a.weight * new[name]
        return new, {"average": average}

    def result(self, params: Params, slots: Slots) -> Params:
        return slots["average"]


Loop = Callable[[Callable[[Params, int], Params], Params, Hyper, int], Params]


def saturated(gradient: Callable[[Params, int], Params], w: Params, h: Hyper, steps: int) -> Params:
    for t in range(steps):
        g = gradient(w, t)
        w = {n: w[n] - h["lr"] * torch.tanh(g[n] / h["width"]) for n in w}
    return w


def normalised(gradient: Callable[[Params, int], Params], w: Params, h: Hyper, steps: int) -> Params:
    for t in range(steps):
        g = gradient(w, t)
        w = {n: w[n] - h["lr"] * g[n] / torch.linalg.vector_norm(g[n]) for n in w}
    return w


def schedule_free(gradient: Callable[[Params, int], Params], w: Params, h: Hyper, steps: int) -> Params:
    z, x = dict(w), dict(w)
    for t in range(steps):
        g = gradient({n: z[n] + h["between"] * (x[n] - z[n]) for n in z}, t)
        z = {n: z[n] - h["lr"] * g[n] for n in z}
        x = {n: x[n] + h["weight"] * (z[n] - x[n]) for n in z}
    return x


def unrolled(loop: Loop, problem: Problem, hyper: Hyper) -> tuple[Tensor, Hyper]:
    """E and dE/dlambda by one long autograd graph."""
    h = {name: value.clone().requires_grad_() for name, value in hyper.items()}
    start = (
        problem.init(h) if callable(problem.init) else {n: w.clone().requires_grad_() for n, w in problem.init.items()}
    )

    def gradient(w: Params, t: int) -> Params:
        loss = problem.inner_loss(w, dict(h), problem.batch(t))
        return dict(zip(w, torch.autograd.grad(loss, list(w.values()), create_graph=True), strict=True))

    end = loop(
        gradient, {n: w + 0.0 if w.requires_grad else w.requires_grad_() for n, w in start.items()}, h, problem.steps
    )
    chunks = problem.outer_batches or []
    value = torch.stack([weight * problem.outer_loss(end, h, batch) for batch, weight in chunks]).sum()
    return value.detach(), dict(zip(h, torch.autograd.grad(value, list(h.values())), strict=True))


def numbers(**given: float) -> Hyper:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}


RULES: dict[str, tuple[InnerOptimizer, Loop, Hyper]] = {
    "saturated": (Saturated(), saturated, numbers(lr=0.1, width=0.3)),
    "normalised": (Normalised(), normalised, numbers(lr=0.05)),
    "schedule-free": (ScheduleFree(), schedule_free, numbers(lr=0.2, between=0.7, weight=0.3)),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_plain_loop(rule: str, mode: str) -> None:
    optimizer, loop, hyper = RULES[rule]
    problem = net_problem(optimizer)
    value, grad = unrolled(loop, problem, hyper)
    got = hypergradient(problem, hyper, mode)
    torch.testing.assert_close(got.value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.grad, grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_plain_loop_where_the_start_depends_on_lambda(rule: str, mode: str) -> None:
    """Slots that start as a copy of w_0 move with it."""
    optimizer, loop, hyper = RULES[rule]
    hyper = hyper | numbers(init_scale=0.4)
    problem = net_problem(optimizer, init=scaled_init)
    value, grad = unrolled(loop, problem, hyper)
    got = hypergradient(problem, hyper, mode)
    torch.testing.assert_close(got.value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.grad, grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_an_elementwise_rule_gives_the_same_laid_end_to_end_or_apart(mode: str) -> None:
    @dataclass(frozen=True)
    class Apart(ScheduleFree):
        elementwise: ClassVar[bool] = False

    _, _, hyper = RULES["schedule-free"]
    together = hypergradient(net_problem(ScheduleFree()), hyper, mode)
    apart = hypergradient(replace(net_problem(Apart())), hyper, mode)
    torch.testing.assert_close(together.grad, apart.grad, rtol=1e-12, atol=1e-14)


def test_only_numbers_among_the_fields_can_be_driven() -> None:
    @dataclass(frozen=True)
    class Labelled(Saturated):
        label: str = "x"
        loud: bool = False

    assert Labelled.argument_names() == ("lr", "width")


def nothing(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return None  # type: ignore[return-value]


def by_itself(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.lr * x[WEIGHTS]


def descent(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.lr * d


DESCENT = Coupling(WEIGHTS, descent)


@dataclass(frozen=True)
class Stated(InnerOptimizer):
    lr: float = 0.1
    coupling: Coupling = DESCENT

    def couplings(self, slots: Collection[str]) -> tuple[Coupling, ...]:
        return (self.coupling,)


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
@pytest.mark.parametrize(
    ("coupling", "said"),
    [
        (Coupling("avrage", descent), "the coupling of 'avrage' moves what there is not; the state holds w"),
        (Coupling(WEIGHTS, nothing), "the coupling of 'w' adds a NoneType; return the tensor that is added"),
        (Coupling(WEIGHTS, by_itself), "the coupling of 'w' reads 'w'; it sees nothing, not itself"),
    ],
)
def test_a_coupling_that_breaks_its_contract_is_named(coupling: Coupling, said: str, mode: str) -> None:
    with pytest.raises(UsageError, match=f"Stated: {said}"):
        hypergradient(net_problem(Stated(coupling=coupling)), numbers(lr=0.1), mode)
