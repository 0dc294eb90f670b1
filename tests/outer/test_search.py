"""Random search and TPE: where they look, that a run of them comes again, and which of their runs are stopped."""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Problem, Reverse
from hyperopt_cli.errors import HopelessError
from hyperopt_cli.modes.plain_run import plain_run
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.outer.ahead import Outcome
from hyperopt_cli.outer.descent import Descent, descend
from hyperopt_cli.outer.median_rule import LEAST_COMPLETED, MedianRule
from hyperopt_cli.outer.outer_step import OuterStep, Trial
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.problem import Hyper
from hyperopt_cli.space import Hyperparameter, Knob, Schedule, Space, Transform
from tests.heard import Heard
from tests.outer.saving import Saving

STEPS, REVERSE = 8, Reverse()
RATES = torch.tensor([0.01, 0.02, 0.08, 0.01], dtype=torch.float64)


def scalar(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def space(bounds: tuple[float, float] | None = None, momentum: float = 0.5) -> Space:
    """A rate in four windows and a momentum."""
    return Space(
        (
            Hyperparameter("lr", Knob(RATES, Transform("log", bounds)), Schedule("windows", STEPS, 4)),
            Hyperparameter(
                "momentum", Knob(scalar(momentum), Transform("logit"), is_beta=True), Schedule("constant", STEPS)
            ),
        )
    )


def bowl(seed: int) -> Problem:
    """L = w^2 from w = 1, which grows at the highest rates; E = w_T^2."""
    return Problem(
        {"w": scalar(1.0)},
        lambda params, hyper, batch: params["w"] ** 2,
        lambda params, hyper: params["w"] ** 2,
        lambda t: None,
        SGD(),
        STEPS,
        schedule=space().at,
    )


def search(method: str, trials: int | None = 14, tied: bool = False, **more: Any) -> list[OuterStep | Trial]:
    descent = Descent(method, trials=trials, tied=tied, budget=more.pop("budget", None))
    return list(descend(bowl, more.pop("space", space()), descent, REVERSE, more.pop("seed", 0), **more))


def trials(measured: list[OuterStep | Trial]) -> list[Trial]:
    return [each for each in measured if isinstance(each, Trial)]


def check_equal(one: list[Trial], two: list[Trial]) -> None:
    assert [each.number for each in one] == [each.number for each in two]
    for a, b in zip(one, two, strict=True):
        fields = ("validation_loss", "price", "price_so_far", "why", "outer_step")
        assert [getattr(a, field) for field in fields] == [getattr(b, field) for field in fields]
        for name, value in a.hyperparameters.items():
            assert torch.equal(value, b.hyperparameters[name])
        assert all(torch.equal(w, b.params[name]) for name, w in a.params.items())


METHODS = pytest.mark.parametrize("method", ["random", "tpe"])
TIED = pytest.mark.parametrize("tied", [False, True])


@METHODS
def test_the_start_is_trial_0_and_line_0_and_the_search_ends_after_its_trials(method: str) -> None:
    measured = search(method, 7)
    (start,) = [each for each in measured if isinstance(each, OuterStep)]
    first = trials(measured)[0]
    assert measured.index(start) == 1
    assert start.hypergradient is None
    assert torch.equal(start.hyperparameters["lr"], first.hyperparameters["lr"])
    torch.testing.assert_close(first.hyperparameters["lr"], RATES, rtol=1e-14, atol=0)
    assert [each.number for each in trials(measured)] == list(range(7))
    assert {each.kind for each in trials(measured)} == {"search"}


@METHODS
def test_a_budget_ends_a_search_too(method: str) -> None:
    assert len(trials(search(method, None, budget=4.0))) == 4
    assert trials(search(method, 100, budget=12.0))[-1].price_so_far <= 12.0


@METHODS
@TIED
def test_the_same_seed_gives_the_same_points_and_another_seed_others(method: str, tied: bool) -> None:
    one, two, other = (trials(search(method, tied=tied, seed=seed)) for seed in (3, 3, 4))
    check_equal(one, two)
    assert not torch.equal(one[1].hyperparameters["lr"], other[1].hyperparameters["lr"])


@METHODS
@TIED
def test_a_longer_search_begins_as_a_shorter_one(method: str, tied: bool) -> None:
    check_equal(trials(search(method, 6, tied)), trials(search(method, 14, tied))[:6])


@METHODS
def test_a_search_that_is_resumed_anywhere_measures_the_same(method: str) -> None:
    keeper = Saving()
    whole = trials(search(method, keeper=keeper))
    assert any(each.why is not None and each.price < 1 for each in whole), "the pruner has to have bitten"
    states = keeper.states[5::23]
    assert any(state["inner"] for state in states)
    assert max(state["num_trials"] for state in states) > LEAST_COMPLETED
    for state in states:
        check_equal(trials(search(method, resume_from=state)), whole[state["num_trials"] :])


@METHODS
def test_a_search_looks_within_the_bounds_and_else_two_decades_around_the_start(method: str) -> None:
    for bounds, low, high in (((0.005, 0.1), 0.005, 0.1), (None, RATES / 100, RATES * 100)):
        rates = torch.stack([each.hyperparameters["lr"] for each in trials(search(method, 20, space=space(bounds)))])
        assert (rates >= torch.as_tensor(low) * (1 - 1e-12)).all()
        assert (rates <= torch.as_tensor(high) * (1 + 1e-12)).all()
        far = (rates.log10() - RATES.log10()).abs().max()
        assert far > (1.0 if bounds is None else 0.5)
    momenta = torch.stack([each.hyperparameters["momentum"] for each in trials(search(method, 20))])
    assert 0 < float(momenta.min()) < float(momenta.max()) <= 1 - 1 / STEPS + 1e-12


def test_the_box_has_the_bounds_and_two_units_where_there_are_none() -> None:
    low, high = Terrain.of(space(), STEPS, in_units=True).box()
    torch.testing.assert_close(low[:4], RATES.log10() - 2)
    torch.testing.assert_close(high[:4], RATES.log10() + 2)
    assert float(low[4]) == pytest.approx(math.log10(1 / STEPS))
    assert float(high[4]) == pytest.approx(0.0, abs=1e-4)
    low, high = Terrain.of(space((0.005, 0.1)), STEPS, in_units=True).box()
    torch.testing.assert_close(low[:4], torch.full((4,), math.log10(0.005), dtype=torch.float64))
    torch.testing.assert_close(high[:4], torch.full((4,), -1.0, dtype=torch.float64))


def test_a_number_for_each_hyperparameter_is_spread_over_its_entries() -> None:
    spread = Terrain.of(space(), STEPS, in_units=True).spread(torch.tensor([3.0, 7.0]))
    assert spread.tolist() == [3.0, 3.0, 3.0, 3.0, 7.0]


@METHODS
@pytest.mark.parametrize("bounds", [None, (0.005, 0.1)])
def test_a_tied_search_keeps_the_ratios_of_the_start(method: str, bounds: tuple[float, float] | None) -> None:
    tied, free = (trials(search(method, 12, tied, space=space(bounds))) for tied in (True, False))
    for each in tied:
        rates = each.hyperparameters["lr"]
        torch.testing.assert_close(rates / rates[0], RATES / RATES[0], rtol=1e-12, atol=0)
    assert len({float(each.hyperparameters["lr"][0]) for each in tied}) == 12
    ratios = torch.stack([each.hyperparameters["lr"] / each.hyperparameters["lr"][0] for each in free[1:]])
    assert ((ratios / (RATES / RATES[0])).log10().abs().amax(dim=1) > 0.1).all()


def test_draws_are_uniform_in_decades() -> None:
    rates = torch.stack([each.hyperparameters["lr"] for each in trials(search("random", 300))[1:]])
    shares = (rates.log10() - RATES.log10() + 2) / 4
    torch.testing.assert_close(shares.mean(0), torch.full((4,), 0.5, dtype=torch.float64), atol=0.06, rtol=0)
    torch.testing.assert_close(shares.var(0), torch.full((4,), 1 / 12, dtype=torch.float64), atol=0.02, rtol=0)


def test_tpe_learns_from_what_it_is_told() -> None:
    """After its ten uniform draws it looks where E is low, and random search goes on as it did."""

    def good(method: str) -> float:
        run = trials(search(method, 40, tied=True))[15:]
        return sum(each.validation_loss < 0.01 for each in run) / len(run)

    assert good("tpe") > 1.5 * good("random")


def test_a_run_is_stopped_where_its_mean_loss_is_above_the_median_of_those_completed() -> None:
    """The rule written out once more, over what plain runs without it give."""
    measured = trials(search("random", 30))
    curves: list[Tensor] = []
    stopped_at = []
    for trial in measured:
        hyper: Hyper = trial.hyperparameters
        try:
            losses = plain_run(bowl(0), hyper).stats["inner_loss"]
        except Exception:  # diverges
            losses = torch.full((STEPS,), math.inf)
        found = None
        for mark in (2, 4, 6) if len(curves) >= 5 else ():
            others = sorted(float(curve[:mark].mean()) for curve in curves)
            middle = (others[len(others) // 2] + others[(len(others) - 1) // 2]) / 2
            if found is None and float(losses[:mark].mean()) > middle:
                found = mark
        if found is None and losses.isfinite().all():
            curves.append(losses)
        stopped_at.append(found)
        if found is not None:
            assert trial.why == f"stopped at step {found}: worse than the median"
            assert trial.price == found / STEPS
            assert (trial.validation_loss, trial.params) == (math.inf, {})
        else:
            assert trial.price == 1.0
            assert trial.why is None or "not finite" in trial.why
    assert {2, 6} <= set(stopped_at), "the rule has to bite"
    prices = list(itertools.accumulate(trial.price for trial in measured))
    assert [trial.price_so_far for trial in measured] == prices


class Pooled:
    """Takes the runs of a pool in this process, as soon as they are begun, and is gone after some of them."""

    def __init__(self, lasts: int = 1000) -> None:
        self.num_begun, self.num_asked, self.num_beats, self._lasts = 0, 0, 0, lasts

    def begin(self, seed: int, hyper: Hyper) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self.num_begun += 1
        future.set_result(Outcome.of(self.problem(seed), hyper))
        return future

    problem = staticmethod(bowl)

    def outcome(self, future: Future[Outcome], beat: Callable[[], None]) -> Outcome | None:
        beat()
        self.num_asked += 1
        return future.result() if self.num_asked <= self._lasts else None

    def drop(self) -> None:
        pass


def shaky(seed: int) -> Problem:
    """As `bowl`, but the training loss is not finite once w has grown."""
    given = bowl(seed)
    return Problem(
        given.init,
        lambda params, hyper, batch: torch.where(params["w"].abs() < 2, params["w"] ** 2, float("nan")),
        given.outer_loss,
        given.batch,
        given.optimizer,
        STEPS,
        given.schedule,
    )


@pytest.mark.parametrize("problem", [bowl, shaky])
@pytest.mark.parametrize("lasts", [1000, 9, 0])
def test_runs_that_are_taken_ahead_change_nothing_even_if_the_processes_end(problem: Any, lasts: int) -> None:
    def taken(pool: Pooled | None, heard: Heard) -> list[Trial]:
        descent = Descent("random", trials=30)
        return trials(list(descend(problem, space(), descent, REVERSE, pool=pool, callback=heard)))

    pool, heard = Pooled(lasts), Heard()
    pool.problem = problem  # type: ignore[method-assign]
    one, ahead = taken(None, Heard()), taken(pool, heard)
    check_equal(one, ahead)
    assert pool.num_begun == 29, "all but the start"
    assert pool.num_asked == min(29, lasts + 1)
    assert [("--jobs has ended" in said) for said in heard.messages] == ([True] if lasts < 29 else [])
    assert any(each.why is not None and "median" in each.why for each in one)
    assert any(each.why is not None and "not finite" in each.why for each in one) == (problem is shaky)


def test_the_rule_waits_for_five_runs_and_for_its_steps() -> None:
    rule, bad = MedianRule(8), torch.full((8,), 9.0)
    for num in range(LEAST_COMPLETED):
        assert not any(rule.hopeless(t, bad[:t]) for t in range(1, 9)), f"after {num} runs"
        rule.add(torch.ones(8))
    assert [t for t in range(1, 9) if rule.hopeless(t, bad[:t])] == [2, 4, 6]
    assert not any(rule.hopeless(t, torch.ones(t)) for t in range(1, 9)), "as good as the median is good enough"
    assert not any(rule.hopeless(t, torch.full((t,), math.nan)) for t in range(1, 9))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_rule_takes_short_runs(steps: int) -> None:
    rule = MedianRule(steps)
    for _ in range(LEAST_COMPLETED):
        rule.add(torch.ones(steps))
    assert [t for t in range(1, steps + 1) if rule.hopeless(t, torch.full((t,), 2.0))] == list(range(1, steps))


def test_a_plain_run_asks_after_each_step_and_ends_where_it_is_told() -> None:
    asked: list[tuple[int, int]] = []

    def hopeless(t: int, losses: Tensor) -> bool:
        asked.append((t, len(losses)))
        return t == 3

    with pytest.raises(HopelessError, match="stopped at step 3") as stopped:
        plain_run(bowl(0), {"lr": RATES, "momentum": scalar(0.0)}, hopeless=hopeless)
    assert stopped.value.step == 3
    assert asked == [(1, 1), (2, 2), (3, 3)]


def test_no_run_is_stopped_where_several_replicas_make_a_trial() -> None:
    descent = Descent("random", trials=20, replicas=2)
    measured = trials(list(descend(bowl, space(), descent, REVERSE)))
    assert all(trial.price == 2.0 for trial in measured)
    assert not any(trial.why is not None and "median" in trial.why for trial in measured)


def test_runs_of_a_scan_and_of_a_search_take_one_thread_and_those_of_a_descent_all() -> None:
    before, seen = torch.get_num_threads(), set[int]()

    def watched(seed: int) -> Problem:
        def inner(params: Params, hyper: Any, batch: None) -> Tensor:
            seen.add(torch.get_num_threads())
            return params["w"] ** 2

        given = bowl(seed)
        return Problem(given.init, inner, given.outer_loss, given.batch, given.optimizer, STEPS, given.schedule)

    try:
        torch.set_num_threads(2)
        steps = descend(watched, space(), Descent("random", trials=3), REVERSE)
        next(steps)
        seen.clear()
        list(steps)
        assert (seen, torch.get_num_threads()) == ({1}, 2)
        seen.clear()
        list(descend(watched, space(), Descent("adam", steps=0), REVERSE))
        assert seen == {2}
    finally:
        torch.set_num_threads(before)
