"""Binomial checkpointing: counts against a dynamic programme, the schedule replayed, the hypergradient bit for bit."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

from hyperopt_cli import Problem, Reverse, hypergradient
from hyperopt_cli.errors import NonDeterministicError
from hyperopt_cli.modes import Hypergradient
from hyperopt_cli.modes.adjoint.binomial import Advance, Keep, Take, Visit, num_forward_steps, schedule
from hyperopt_cli.optimizers import SGD, Adam
from hyperopt_cli.problem import Hyper
from tests.cases import CASES, hypergradient_of, net_problem, scalar
from tests.modes.test_models import HYPER, MODELS, made, problem_of

KNOWN = {(10, 3): 16, (100, 10): 223, (1000, 50): 1949, (1000, 10): 3637, (10000, 100): 24748}
SIZES = [(steps, slots) for steps in (1, 2, 3, 5, 8, 13, 21, 40, 90) for slots in (1, 2, 3, 4, 7, 12, 39, 40, 100)]


@cache
def by_recurrence(steps: int, slots: int) -> int:
    """E(l, s), by trying every m."""
    if steps == 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(m + by_recurrence(steps - m, slots - 1) + by_recurrence(m, slots) for m in range(1, steps))


@pytest.mark.parametrize(("size", "count"), KNOWN.items())
def test_the_known_counts(size: tuple[int, int], count: int) -> None:
    assert num_forward_steps(*size) == count


@pytest.mark.parametrize("size", SIZES)
def test_the_closed_form_solves_the_recurrence(size: tuple[int, int]) -> None:
    assert num_forward_steps(*size) == by_recurrence(*size) + 1


@pytest.mark.parametrize(("slots", "count"), [(1, 10**6 * (10**6 - 1) // 2 + 1), (10**6, 10**6), (10**7, 10**6)])
def test_a_long_horizon_is_counted_at_once(slots: int, count: int) -> None:
    assert num_forward_steps(10**6, slots) == count


def replayed(steps: int, slots: int) -> Iterator[int]:
    """Does what the schedule says with integers for states: yields those visited, checks all others."""
    hand, stack, taken = 0, list[int](), 0
    for action in schedule(steps, slots):
        match action:
            case Keep(at):
                assert at == hand
                stack.append(hand)
                assert len(stack) <= slots
            case Advance(at, to):
                assert at == hand < to
                hand, taken = to, taken + to - at
            case Visit(at):
                assert at == hand
                yield at
            case Take(at, last):
                hand = stack.pop() if last else stack[-1]
                assert at == hand
    assert not stack
    assert taken + 1 == num_forward_steps(steps, slots)


@pytest.mark.parametrize("size", [*SIZES, *((s, n) for s, n in KNOWN if s < 10000)])
def test_the_schedule_visits_every_state_once_last_first_with_no_more_slots_than_given(size: tuple[int, int]) -> None:
    assert list(replayed(*size)) == list(reversed(range(size[0])))


@pytest.mark.parametrize("size", [(40, 3), (90, 12), (1000, 50)])
def test_the_first_steps_are_the_run_itself(size: tuple[int, int]) -> None:
    taken: list[int] = []
    for action in schedule(*size):
        if isinstance(action, Visit):
            break
        if isinstance(action, Advance):
            taken += range(action.at, action.to)
    assert taken == list(range(size[0] - 1))


def test_every_visit_is_followed_by_taking_the_slot_filled_last() -> None:
    actions = list(schedule(50, 5))
    after = [type(b) for a, b in pairwise(actions) if isinstance(a, Visit)]
    assert after == [Take] * 49


def assert_same_bits(one: Hypergradient, other: Hypergradient) -> None:
    assert torch.equal(one.value, other.value)
    for a, b in ((one.grad, other.grad), (one.params, other.params)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(one.stats["inner_loss"], other.stats["inner_loss"])


SLOTS = [1, 2, 3, 5, 11, 12, 30, "all", "auto", {"device": 1, "disk": 2}, {"host": 3}, {"disk": 4}]
SOME = ["momentum", "adam", "rmsprop centered", "per step", "per tensor", "init", "losses", "one step", "nesterov"]


@pytest.mark.parametrize("slots", SLOTS, ids=str)
@pytest.mark.parametrize("case", SOME)
def test_slots_do_not_change_a_bit(case: str, slots: Any) -> None:
    _, problem, hyper = CASES[case]
    assert_same_bits(hypergradient(problem, hyper, Reverse(slots=slots)), hypergradient_of(case, "reverse"))


@pytest.mark.parametrize("slots", [1, 4, 11, {"device": 2, "host": 2, "disk": 3}], ids=str)
@pytest.mark.parametrize("steps", [7, 33])
def test_slots_do_not_change_a_bit_of_longer_runs(steps: int, slots: Any) -> None:
    problem = net_problem(Adam(eps=1e-3), steps=steps)
    hyper = {"lr": scalar(0.05), "beta2": scalar(0.9)}
    assert_same_bits(hypergradient(problem, hyper, Reverse(slots=slots)), hypergradient(problem, hyper, "reverse"))


@pytest.mark.parametrize("name", [*MODELS])
def test_slots_do_not_change_a_bit_of_layers_with_draws_and_statistics(name: str) -> None:
    problem = replace(problem_of(made(name)), steps=6)
    got = hypergradient(problem, HYPER, Reverse(slots={"device": 1, "disk": 1}))
    assert got.stats["num_steps"] == num_forward_steps(6, 2) > 6
    assert_same_bits(got, hypergradient(problem, HYPER, "reverse"))


def test_a_batch_that_is_not_replayed_is_refused() -> None:
    """A batch that depends on how often it was asked for is drawn anew by recomputation."""
    _, problem, hyper = CASES["momentum"]
    asked = [0] * problem.steps

    def drifting(t: int) -> Any:
        asked[t] += 1
        x, y = problem.batch(t)
        return x * (1 + 1e-6 * max(0, asked[t] - 4)), y

    with pytest.raises(NonDeterministicError):
        hypergradient(replace(problem, batch=drifting), hyper, Reverse(slots=2))


@pytest.mark.parametrize(("size", "count"), [((10, 3), 16), ((100, 10), 223), ((40, 1), 781), ((40, 40), 40)])
def test_a_run_takes_the_steps_that_are_counted(size: tuple[int, int], count: int) -> None:
    steps, slots = size
    problem, hyper = quadratic(steps)
    stats = hypergradient(problem, hyper, Reverse(slots=slots)).stats
    assert (stats["num_steps"], stats["num_gradients"], stats["num_hvps"]) == (count, count + steps, steps)
    assert stats["slots"] == slots


@pytest.mark.parametrize(
    ("slots", "number"), [(None, 20), ("all", 20), ("auto", 20), (7, 7), (99, 20), ({"disk": 1, "host": 2}, 3)], ids=str
)
def test_the_number_of_slots_is_told(slots: Any, number: int) -> None:
    assert hypergradient(*quadratic(20), Reverse(slots=slots)).stats["slots"] == number


def quadratic(steps: int) -> tuple[Problem, Hyper]:
    start = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}

    def value(params: Hyper, *rest: Any) -> torch.Tensor:
        return (params["w"] ** 2).sum() / 2

    return Problem(start, value, value, lambda t: None, SGD(), steps), {"lr": scalar(0.1), "momentum": scalar(0.5)}


PEAKS = """
import torch
from hyperopt_cli import Problem, Reverse, hypergradient
from hyperopt_cli.optimizers import SGD

torch.set_num_threads(1)
w, hyper = {"w": torch.ones(50_000)}, {"lr": torch.tensor(0.001), "momentum": torch.tensor(0.5)}
value = lambda params, *rest: (params["w"] ** 2).sum() / 2
for steps, slots in ((3, 3), (1000, 100), (1000, 200), (1000, None)):  # the first loads what is loaded late
    problem = Problem(w, value, value, lambda t: None, SGD(), steps)
    print(hypergradient(problem, hyper, Reverse(slots=slots)).stats["peak_bytes"])
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of a call can't be measured")
@pytest.mark.slow
def test_memory_grows_by_the_numbers_in_the_slots_and_little_more() -> None:
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    _, few, some, every = (int(line) for line in done.stdout.split())
    state = 2 * 4 * 50_000
    assert every - few < 1.05 * 900 * state
    assert 0.1 * (every - few) < some - few < 0.125 * (every - few)  # 100 of 900 states


def test_recomputation_moves_no_progress_back() -> None:
    heard: list[tuple[str, int, int]] = []
    hypergradient(*quadratic(30), Reverse(slots=3), on_step=lambda *step: heard.append(step))
    assert heard[:30] == [("forward", t, 30) for t in range(1, 31)]
    back = heard[30:]
    assert {(phase, steps) for phase, _, steps in back} == {("backward", 30)}
    assert [done for _, done, _ in back] == sorted(done for _, done, _ in back)
    assert len(heard) == num_forward_steps(30, 3) + 30  # every step that is taken is heard
    assert back[-1] == ("backward", 30, 30)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (0, "slots: got 0; allowed are None"),
        (-3, "slots: got -3"),
        (True, "slots: got True"),
        (2.0, r"slots: got 2\.0"),
        ("some", "slots: got 'some'; allowed are None or \"all\""),
        ({"gpu": 3}, "slots: got 'gpu' in .*; allowed are device, host, disk"),
        ({"device": -1}, "slots: got -1 for device; allowed is a number of at least 0"),
        ({"device": 0}, "w_0 needs one"),
        ({}, "w_0 needs one"),
    ],
    ids=str,
)
def test_slots_that_make_no_sense_are_refused(slots: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reverse(slots=slots)
