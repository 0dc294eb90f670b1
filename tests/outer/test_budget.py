"""What the outer loop yields, what it has cost, and where it ends."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from hyperopt_cli import Forward, Problem, Reverse, Reversible
from hyperopt_cli.errors import NonFiniteError
from hyperopt_cli.modes import Auto, Mode
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.outer.outer_step import OuterStep, Trial
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests.outer.saving import Saving

F64, STEPS = torch.float64, 4
PRICES = {  # of a hypergradient for K = 2
    "forward": (Forward(), 5.0),
    "reverse": (Reverse(), 4.0),
    "reverse with slots": (Reverse(slots=2), 4.0),
    "truncated": (Reverse(window=2), 2.5),
    "reversible": (Reversible(), 4.0),
    "auto": (Auto(), 4.0),
}


def bowl(seed: int) -> Problem:
    """L = x^2 / 2 from a start that the seed moves, with momentum; E = x_T^2 / 2 explodes above a rate of 2."""
    return Problem(
        {"x": torch.tensor([1.0 + 0.01 * (seed % 7), 2.0], dtype=F64)},
        lambda p, hyper, b: (p["x"] ** 2 * torch.tensor([0.5, 0.05])).sum(),
        lambda p, hyper: (p["x"] ** 2).sum() / 2 + 0.1,
        lambda t: None,
        SGD(momentum=0.5),
        STEPS,
    )


def space_from(rate: float) -> Space:
    def named(name: str, start: float, transform: str) -> Hyperparameter:
        knob = Knob(torch.tensor(start, dtype=F64), Transform(transform), is_beta=name == "momentum")
        return Hyperparameter(name, knob, Schedule("constant", STEPS))

    return Space((named("lr", rate, "log"), named("momentum", 0.5, "logit")))


def walked(rate: float = 1e-3, mode: Mode | None = None, **settings: Any) -> list[OuterStep | Trial]:
    descent = Descent(**{"optimizer": "auto", "steps": 3, **settings})
    return list(descend(bowl, space_from(rate), descent, mode or Reverse()))


def price_of(each: OuterStep | Trial) -> float:
    return each.price_so_far if isinstance(each, Trial) else float(each.stats["price"])


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", PRICES)
def test_the_price_is_counted(name: str, replicas: int) -> None:
    """1 a plain run, that of a hypergradient by its mode; where no sweep goes back, a plain run comes before it."""
    mode, of_gradient = PRICES[name]
    seen = walked(mode=mode, replicas=replicas)
    before, asked_first = 0.0, False
    for each in seen:
        if isinstance(each, OuterStep) and each.hypergradient is None:
            assert price_of(each) == replicas  # the first run of the scan
            continue
        paid = (price_of(each) - before) / replicas
        if isinstance(each, Trial):
            assert paid == 1.0
        elif not asked_first:
            assert paid == of_gradient
            asked_first = True
        else:
            on_its_way = replicas == 1 and name != "forward"
            assert paid == of_gradient + (0.0 if on_its_way else 1.0)
        before = price_of(each)
    assert sum(isinstance(each, OuterStep) and each.hypergradient is not None for each in seen) == 4


def test_line_0_is_the_start_without_a_hypergradient_where_the_descent_begins_elsewhere() -> None:
    seen = walked()
    steps = [each for each in seen if isinstance(each, OuterStep)]
    assert [step.outer_step for step in steps] == [0, 1, 2, 3, 4]
    assert float(steps[0].hyperparameters["lr"]) == pytest.approx(1e-3)
    assert steps[0].hypergradient is steps[0].raw_hypergradient is None
    assert float(steps[1].hyperparameters["lr"]) == pytest.approx(1.0)
    assert steps[1].hypergradient is not None
    assert seen[0] == next(each for each in seen if isinstance(each, Trial))
    assert [each.number for each in seen if isinstance(each, Trial)] == list(range(len(seen) - len(steps)))


def test_line_0_has_its_hypergradient_where_the_descent_begins_at_the_start() -> None:
    steps = [each for each in walked(rate=1.0) if isinstance(each, OuterStep)]
    assert steps[0].hypergradient is not None
    assert [step.outer_step for step in steps] == [0, 1, 2, 3]


def test_a_start_that_diverges_is_line_0_and_the_scan_finds_another(recwarn: pytest.WarningsRecorder) -> None:
    seen = walked(rate=1e200)
    start, *others = (each for each in seen if isinstance(each, OuterStep))
    assert (start.validation_loss, start.hypergradient, start.params) == (math.inf, None, {})
    assert seen[0].why is not None  # type: ignore[union-attr]
    assert min(step.validation_loss for step in others) < 1.0


def test_where_everything_diverges_the_start_is_told_and_the_error_raised() -> None:
    def diverging(seed: int) -> Problem:
        return replace(bowl(seed), outer_loss=lambda p, hyper: p["x"].sum() * hyper["lr"] * math.inf)

    seen: list[OuterStep | Trial] = []
    steps_of_it = descend(diverging, space_from(0.1), Descent("auto"), Reverse())
    with pytest.raises(NonFiniteError):
        seen.extend(steps_of_it)
    steps = [each for each in seen if isinstance(each, OuterStep)]
    assert [(step.outer_step, step.validation_loss) for step in steps] == [(0, math.inf)]


@pytest.mark.parametrize("budget", [3, 9, 10, 14, 17])
def test_a_budget_ends_a_run_that_begins_as_that_of_a_larger_one(budget: int) -> None:
    whole, part = walked(steps=10, budget=30), walked(steps=10, budget=budget)
    assert price_of(part[-1]) <= budget < price_of(part[-1]) + 4
    figures = [[(type(each), each.validation_loss, price_of(each)) for each in run] for run in (part, whole)]
    last = 1 if isinstance(part[-1], Trial) or part[-1].hypergradient is None else 0  # for want of room
    assert figures[0][: len(part) - last] == figures[1][: len(part) - last]


def figures(run: list[OuterStep | Trial]) -> list[Any]:
    return [(type(each), each.validation_loss, price_of(each)) for each in run]


@pytest.mark.parametrize("budget", [12, 15.5, 18, 19, 24])
@pytest.mark.parametrize("name", ["forward", "reverse", "reverse over replicas"])
def test_a_budget_is_kept_to_and_a_run_resumed_from_any_state_ends_alike(name: str, budget: float) -> None:
    mode: Mode = Forward() if name == "forward" else Reverse()
    descent = Descent("auto", steps=6, budget=budget, replicas=2 if name == "reverse over replicas" else 1)
    saving = Saving()
    whole = list(descend(bowl, space_from(1e-3), descent, mode, keeper=saving))
    assert max(map(price_of, whole)) <= budget
    assert len(saving.states) > len(whole)
    for state in saving.states[::5]:
        rest = list(descend(bowl, space_from(1e-3), descent, mode, resume_from=copy.deepcopy(state)))
        trials = [each for each in rest if isinstance(each, Trial)]
        steps = [each for each in rest if isinstance(each, OuterStep)]
        assert figures(trials) == figures([each for each in whole if isinstance(each, Trial)])[state["num_trials"] :]
        assert figures(steps) == figures([each for each in whole if isinstance(each, OuterStep)])[state["n"] :]


@pytest.mark.parametrize("budget", [3, 6, 15.5, 16])
def test_a_budget_that_is_raised_goes_on_as_if_it_had_been_larger(budget: float) -> None:
    saving, whole = Saving(), walked(steps=6, budget=40)
    list(descend(bowl, space_from(1e-3), Descent("auto", steps=6, budget=budget), Reverse(), keeper=saving))
    larger = Descent("auto", steps=6, budget=40)
    for state in (saving.states[-1], saving.states[-2]):  # the last plain run may be under way
        rest = list(descend(bowl, space_from(1e-3), larger, Reverse(), resume_from=copy.deepcopy(state)))
        assert figures(rest) == figures(whole)[state["n"] + state["num_trials"] :]


@pytest.mark.parametrize(("mode", "budget"), [(Forward(), 5), (Forward(), 10), (Auto(), 4), (Reverse(), 8)])
def test_a_rule_takes_as_many_hypergradients_as_the_budget_has_room_for(mode: Mode, budget: int) -> None:
    num = budget // (5 if isinstance(mode, Forward) else 4)
    assert len(walked(optimizer="adam", mode=mode, steps=9, budget=budget)) == num


def test_a_step_that_diverges_costs_the_run_that_judges_it() -> None:
    """Only forward of the cliff is the loss finite; the first step leads over it."""

    def cliff(seed: int) -> Problem:
        far = lambda p, hyper: (hyper["lr"] - 5).abs() + torch.where(hyper["lr"] > 1.5, math.inf, 0) * p["x"].sum()  # noqa: E731
        return replace(bowl(seed), outer_loss=far)

    seen = list(descend(cliff, space_from(1.0), Descent("auto", steps=1), Reverse()))
    diverged = [each for each in seen if isinstance(each, Trial) and each.kind == "step" and each.why is not None]
    assert diverged
    assert all(each.price == 1.0 for each in diverged)
