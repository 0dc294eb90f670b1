"""A user's update rule, `init` and schedule: differentiated as what they compute, or refused with name and step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Problem, hypergradient
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import InnerOptimizer

F64 = torch.float64
STEPS = 8
START = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=F64)
HYPER = {"lr": torch.tensor(0.05, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}

Body = Callable[[Tensor, Tensor, Tensor, Any, int], tuple[Tensor, Tensor]]


def rule_of(
    body: Body, at: Callable[..., Tensor] | None = None, end: Callable[..., Tensor] | None = None
) -> InnerOptimizer:
    """An optimizer of one slot whose step is `body(w, m, g, arguments, t)`."""

    @dataclass(frozen=True)
    class Own(InnerOptimizer):
        lr: float = 0.1
        momentum: float = 0.0

        def slots(self, params: Any, driven: Any) -> Any:
            return {"m": {name: torch.zeros_like(w) for name, w in params.items()}}

        def update(self, params: Any, slots: Any, grads: Any, hyper: Any, step: int) -> Any:
            new, m = {}, {}
            for name, w in params.items():
                m[name], new[name] = body(w, slots["m"][name], grads[name], self.arguments(hyper, name, w), step)
            return new, {"m": m}

        def gradient_at(self, params: Any, slots: Any, hyper: Any, step: int) -> Any:
            if at is None:
                return params
            return {name: at(w, slots["m"][name], self.arguments(hyper, name, w)) for name, w in params.items()}

        def result(self, params: Any, slots: Any) -> Any:
            return params if end is None else {name: end(w, slots["m"][name]) for name, w in params.items()}

    return Own()


def loss(p: Any, h: Any, b: Any) -> Tensor:
    return (p["w"] ** 4).sum() / 4 + p["w"].sin().sum()


def trained(rule: InnerOptimizer, hyper: Any) -> float:
    """E by the rule itself, forward only."""
    params: Any = {"w": START}
    slots = rule.slots(params, frozenset())
    for t in range(STEPS):
        point = rule.gradient_at(params, slots, hyper, t)["w"].detach().requires_grad_()
        (g,) = torch.autograd.grad(loss({"w": point}, hyper, None), point)
        params, slots = rule.update(params, slots, {"w": g}, hyper, t)
    return float((rule.result(params, slots)["w"] ** 2).sum())


def differences(rule: InnerOptimizer, h: float = 1e-5) -> dict[str, float]:
    value = lambda name, by: trained(rule, {**HYPER, name: HYPER[name] + by})  # noqa: E731
    return {name: (value(name, h) - value(name, -h)) / (2 * h) for name in HYPER}


def without_gradient(w: Tensor, m: Tensor, g: Tensor, a: Any, t: int) -> Any:
    with torch.no_grad():
        mean = (m + g).mean()
    m = a.momentum * m + g - 0.3 * mean
    return m, w - a.lr * m


def kept(m: Tensor, g: Tensor, a: Any) -> Tensor:
    moved: Tensor = a.momentum * m + g
    return moved


def scaled_down(m: Tensor, g: Tensor) -> Tensor:
    """At the first steps the slot is small."""
    size = m.norm()
    return g * (1.5 / size.detach()) if size > 1.5 else g


CUT: dict[str, Any] = {
    "as it should be": rule_of(lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a))),
    "a detached slot": rule_of(lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a).detach())),
    "a detached norm": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a) / (1 + g.norm().detach()))
    ),
    "a mean without gradient": rule_of(without_gradient),
    "a detach from step 4 on": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * (kept(m, g, a) if t < 4 else kept(m, g, a).detach()))
    ),
    "a detached point": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a)),
        lambda w, m, a: w - a.lr * (a.momentum * m).detach(),
    ),
    "a detached result": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a)), None, lambda w, m: w - 0.1 * m.detach()
    ),
    "a clipping by hand that is idle at first": rule_of(
        lambda w, m, g, a, t: (kept(m, scaled_down(m, g), a), w - a.lr * kept(m, scaled_down(m, g), a))
    ),
    "a result behind a decision": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a)),
        None,
        lambda w, m: w * (0.9 * w.norm() / w.norm().detach()) if w.norm() < 100 else w,
    ),
    "a clipped gradient": rule_of(lambda w, m, g, a, t: (kept(m, g.clamp(-1, 1), a), w - a.lr * kept(m, g, a))),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", CUT)
def test_a_rule_is_differentiated_as_what_it_computes(name: str, mode: str) -> None:
    rule = CUT[name]
    problem = Problem({"w": START}, loss, lambda p, h: (p["w"] ** 2).sum(), lambda t: None, rule, STEPS)
    got, want = hypergradient(problem, HYPER, mode).grad, differences(rule)
    for key, x in want.items():
        assert float(got[key]) == pytest.approx(x, rel=1e-6), key


REFUSED: dict[str, Any] = {
    "an item of the slot": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a) / (1 + m.norm().item()))
    ),
    "a number of the rate": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a) * (1 + float(a.lr)))
    ),
    "numpy": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a) - torch.from_numpy(g.detach().numpy() * 0.01))
    ),
    "an item from step 5 on": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, g, a) * (1 if t < 5 else 1 + m.norm().item()))
    ),
    "a list": rule_of(
        lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * kept(m, torch.tensor(g.tolist(), dtype=F64), a))
    ),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_leaves_torch_in_a_rule_is_refused_with_the_step(name: str, mode: str) -> None:
    problem = Problem({"w": START}, loss, lambda p, h: (p["w"] ** 2).sum(), lambda t: None, REFUSED[name], STEPS)
    with pytest.raises(UsageError, match=r"Own\.update at step \d: its derivative is not that of its value"):
        hypergradient(problem, HYPER, mode)


def scheduled(schedule: Any, init: Any = None) -> Problem:
    start = {"w": START} if init is None else init
    return Problem(start, loss, lambda p, h: (p["w"] ** 2).sum(), lambda t: None, SGD(), STEPS, schedule)


def decayed_without_gradient(h: Any, t: int) -> Any:
    with torch.no_grad():
        share = 1 - t * h["lr"]
    return {**h, "lr": h["lr"] * share}


SCHEDULES: dict[str, Any] = {
    "plain": (lambda h, t: {**h, "lr": h["lr"] * (1 - t / 10)}, None),
    "a detach": (lambda h, t: {**h, "lr": h["lr"] * (1 - t * h["lr"].detach())}, None),
    "without gradient": (decayed_without_gradient, None),
    "an init that is detached": (None, lambda h: {"w": START * (1 + h["lr"].detach()) * (1 + 0 * h["momentum"])}),
    "both": (decayed_without_gradient, lambda h: {"w": START * (1 + h["lr"].detach())}),
}


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_and_an_init_are_differentiated_as_what_they_compute(name: str, mode: str) -> None:
    problem = scheduled(*SCHEDULES[name])

    def value(by: float) -> float:
        """A plain run by hand: heavy ball."""
        hyper = {**HYPER, "lr": HYPER["lr"] + by}
        w = problem.initial(hyper)["w"].detach()
        m = torch.zeros_like(w)
        for t in range(STEPS):
            now = problem.hyper_at(hyper, t)
            leaf = w.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss({"w": leaf}, now, None), leaf)
            m = now["momentum"] * m + g
            w = w - now["lr"].detach() * m
        return float((w**2).sum())

    want = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float(hypergradient(problem, HYPER, mode).grad["lr"]) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
@pytest.mark.parametrize("first", [0, 5])
def test_a_number_in_a_schedule_is_refused_with_the_step(first: int, mode: str) -> None:
    schedule = lambda h, t: {**h, "lr": h["lr"] * (1 if t < first else 1 + float(h["lr"]))}  # noqa: E731
    with pytest.raises(UsageError, match=f"schedule at step {first}: its derivative is not that of its value"):
        hypergradient(scheduled(schedule), HYPER, mode)


def at_a_kink(x: Tensor, x0: Tensor) -> Tensor:
    """Zero, with a decision on its way that comes out otherwise on either side of x0."""
    return torch.relu(x - x0) * 0


FIRST = START**3 + START.cos()  # the gradient at the start, and the slot after a step
READ: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.norm().item(),
    "float": lambda x: float(x.norm()),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "tolist": lambda x: torch.tensor(x.tolist(), dtype=F64),
    "an element": lambda x: x[0].item(),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("where", ["update", "init", "schedule"])
def test_what_differences_cannot_judge_is_refused_where_a_number_leaves_torch(where: str, name: str, mode: str) -> None:
    read = lambda x, x0: at_a_kink(x, x0) + READ[name](x)  # noqa: E731
    if where == "update":
        rule = rule_of(lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * (kept(m, g, a) + 0.1 * read(m, FIRST))))
        problem = Problem({"w": START}, loss, lambda p, h: (p["w"] ** 2).sum(), lambda t: None, rule, STEPS)
    elif where == "init":
        start = lambda h: START * h["lr"]  # noqa: E731
        problem = scheduled(None, lambda h: {"w": START + 0 * h["momentum"] + read(start(h), start(HYPER))})
    else:
        problem = scheduled(lambda h, t: {**h, "lr": h["lr"] + read(h["lr"].expand(4), HYPER["lr"]).sum() / 50})
    with pytest.raises(UsageError, match="depends on a number that leaves torch"):
        hypergradient(problem, HYPER, mode)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_what_differences_cannot_judge_goes_on_where_two_ways_agree_and_is_said(mode: str) -> None:
    rule = rule_of(lambda w, m, g, a, t: (kept(m, g, a), w - a.lr * (kept(m, g, a) + at_a_kink(m, FIRST))))
    problem = Problem({"w": START}, loss, lambda p, h: (p["w"] ** 2).sum(), lambda t: None, rule, STEPS)
    got, want = hypergradient(problem, HYPER, mode), differences(rule)
    assert "not judged: update" in got.stats["checks"]
    for key, x in want.items():
        assert float(got.grad[key]) == pytest.approx(x, rel=1e-6), key
