"""What the time of ranks goes into: pieces that are timed by themselves, and what the model takes from them.

Steps of two sizes, by one process while the others rest and by all at once, each for itself: what they lose to each
other (caches, memory, clock) is in the second. Messages are timed between as many ranks as there are.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from hyperopt_cli.bench.measuring import Lap, Samples
from hyperopt_cli.bench.scaling import NUM_ASKED, Costs, Link, Work
from hyperopt_cli.bench.shares import Share, asked_s, gradient_s, step_s, sum_s
from hyperopt_cli.bench.task import Task
from hyperopt_cli.bench.team import Team

GRADIENT = "gradient"
ASKED, FEW, MANY = f"sum of {NUM_ASKED} numbers", "sum of P numbers", "sum of K P numbers"
SMALLEST_PART = 64  # of a batch: what each of so many ranks would have


class Rounds(NamedTuple):
    """What the model is made of, round by round.

    Attributes:
        ranks: how many were at work where they were at work at once.
        alone: of one process while others rest.
        at_once: of each of them.
        link: between them, by the medians: a difference of two messages is noise in a single round.
        few_s: seconds of a sum of P numbers, which no part of the model is made of.
        measured_s: seconds of the whole, by number of ranks.
    """

    ranks: int
    alone: list[Costs]
    at_once: list[Costs]
    link: Link
    few_s: tuple[float, ...]
    measured_s: Mapping[int, tuple[float, ...]]


def pieces(task: Task, work: Work, teams: Mapping[int, Team]) -> dict[str, Callable[[], Lap]]:
    """By name, what times each of them."""
    most = max(teams)
    calls: dict[str, Callable[[], Lap]] = {}
    for num in (1, most):
        timed = partial(_slowest, teams[num])
        calls[GRADIENT + _where(num)] = partial(timed, gradient_s, task)
        for size in _two_sizes(work):
            columns, examples = (size, None) if work.shard == "columns" else (work.columns, size)
            calls[_step(work, size, num)] = partial(timed, step_s, task, columns, examples)
    timed = partial(_slowest, teams[most])
    numbers = {FEW: work.parameters, MANY: work.columns * work.parameters}
    sums = {name: partial(timed, sum_s, task, num) for name, num in numbers.items()}
    return {**calls, ASKED: partial(timed, asked_s), **sums}


def rounds(
    work: Work, samples: Mapping[str, Samples], first: tuple[Share, ...], measured_s: Mapping[int, tuple[float, ...]]
) -> Rounds:
    """What was found.

    Args:
        work: what was done.
        samples: of the pieces.
        first: of one process that took the whole, in every round.
        measured_s: seconds of several, by their number.
    """
    most, sizes = max(measured_s), _two_sizes(work)
    rest_s = [max(0.0, share.seconds - work.steps * share.step_s) for share in first]

    def of(name: str) -> tuple[float, ...]:
        return samples[name].timing.rounds_s

    def costs(num: int) -> list[Costs]:
        small, whole = (of(_step(work, size, num)) for size in sizes)
        return [Costs.of(sizes, pair, rest) for *pair, rest in zip(small, whole, rest_s, strict=True)]  # type: ignore[arg-type]

    num_bytes = work.columns * work.parameters * work.number_bytes
    link = Link.of(most, samples[ASKED].timing.median_s, num_bytes, samples[MANY].timing.median_s)
    return Rounds(most, costs(1), costs(most), link, of(FEW), measured_s)


def _two_sizes(work: Work) -> tuple[int, int]:
    """Columns, or examples."""
    return 1 if work.shard == "columns" else math.ceil(work.batch / SMALLEST_PART), work.size


def _step(work: Work, size: int, num: int) -> str:
    letter = "K" if work.shard == "columns" else "B"
    return f"step, {letter} = {size}{_where(num)}"


def _where(num: int) -> str:
    return "" if num == 1 else f", {num} at once"


def _slowest(team: Team, piece: Callable[..., float], *arguments: Any) -> Lap:
    return Lap(max(team.all(piece, *arguments)), None)
