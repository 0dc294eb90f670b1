"""A few steps of a run, taken by a mode and timed.

A probe is itself a `Problem`: its step i is step `times[i]` of the run, and it starts from the run's own s_0. The mode
runs over it as over any other, so that what is timed is what a run does. Its outer objective costs next to nothing:
the real one is measured by itself, by chunks.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.errors import NonFiniteError
from hyperopt_cli.memory import give_back, peak_bytes, reset_peak
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper, Problem

MAX_CHUNKS = 3


class Measured(NamedTuple):
    """What a probe has shown.

    Attributes:
        step_s: seconds of a step, by phase ("forward", "backward").
        peak_bytes: as in a hypergradient's `stats`.
        stats: all of them.
    """

    step_s: dict[str, float]
    peak_bytes: int
    stats: dict[str, Any]

    @property
    def whole_step_s(self) -> float:
        """Seconds of a step in all its phases."""
        return sum(self.step_s.values())


class Cost(NamedTuple):
    """Seconds, and the peak of the memory meanwhile."""

    wall_s: float
    peak_bytes: int


def spread(steps: int, num: int) -> list[int]:
    """Returns `num` of the steps 0 ... steps - 1, spread evenly over all; some twice where there are fewer."""
    return [round(i * (steps - 1) / max(1, num - 1)) for i in range(num)]


def shortened(problem: Problem, times: Sequence[int]) -> Problem:
    """Returns the problem whose step i is step `times[i]` of `problem`, with an outer objective that costs nothing."""
    return replace(
        problem,
        outer_loss=lambda params, hyper: next(iter(params.values())).sum(),
        outer_batches=None,
        batch=lambda i: problem.batch(times[i]),
        schedule=None if problem.schedule is None else lambda hyper, i: problem.hyper_at(hyper, times[i]),
        steps=len(times),
    )


def carrying(problem: Problem, hyper: Hyper, num_columns: int) -> tuple[Problem, Hyper]:
    """Returns the problem in the first `num_columns` elements of lambda, all carried from the start on.

    w_0 gets a tangent along each of them and keeps its value.
    """
    flat = torch.cat([value.flatten() for value in hyper.values()])
    whole = num_columns >= flat.numel()
    chosen = hyper if whole else {"first": flat[:num_columns]}
    lift = _same if whole else _lift(hyper, flat[num_columns:])

    def init(chosen: Hyper) -> Params:
        total = torch.stack([value.sum() for value in chosen.values()]).sum()
        change = total - total.detach()  # exactly 0, with a derivative of 1
        return {name: w + change.to(w) for name, w in problem.initial(lift(chosen)).items()}

    schedule = None if problem.schedule is None and whole else lambda chosen, t: problem.hyper_at(lift(chosen), t)
    return replace(problem, init=init, schedule=schedule), chosen


def _same(hyper: Hyper) -> Hyper:
    return hyper


def _lift(like: Hyper, rest: Tensor) -> Callable[[Hyper], Hyper]:
    """The first elements of lambda -> all of it."""

    def lift(chosen: Hyper) -> Hyper:
        parts = torch.split(torch.cat([chosen["first"], rest]), [value.numel() for value in like.values()])
        return {name: part.view(value.shape).to(value) for (name, value), part in zip(like.items(), parts, strict=True)}

    return lift


def probed(
    mode: Mode, problem: Problem, hyper: Hyper, times: Sequence[int], measurements: Measurements | None = None
) -> Measured:
    """Runs `mode` over the steps `times` of `problem`, at least two: the first of each phase is the warm-up.

    The steps follow upon s_0 out of their order; where that leaves the finite numbers, the first ones are taken.

    Args:
        mode: that takes them.
        problem: the training run.
        hyper: lambda.
        times: the steps.
        measurements: of earlier probes with this mode; None: nothing is known.

    Raises:
        NonFiniteError: the run itself diverges at once.
    """
    known = Measurements() if measurements is None else measurements
    try:
        return _measured(mode, shortened(problem, times), hyper, known)
    except NonFiniteError:
        first = [min(i, problem.steps - 1) for i in range(len(times))]
        return _measured(mode, shortened(problem, first), hyper, known)


def _measured(mode: Mode, problem: Problem, hyper: Hyper, measurements: Measurements) -> Measured:
    dynamics = Dynamics.of(problem, hyper)
    give_back()
    clock = _Clock(dynamics.like.device)
    account = Account(problem.steps, dynamics.like, clock.step_done)
    account.examines = False
    stats = mode.differentiate(problem, hyper, account, measurements).stats
    return Measured(clock.step_s(), stats["peak_bytes"], stats)


@dataclass
class _Clock:
    """Seconds of the steps; the device has finished a step before the next one begins."""

    device: torch.device

    def __post_init__(self) -> None:
        self._times_s: dict[str, list[float]] = {}
        self._last = time.perf_counter()

    def step_done(self, phase: str, done: int, steps: int) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self._times_s.setdefault(phase, []).append(now - self._last)
        self._last = now

    def step_s(self) -> dict[str, float]:
        """By phase, without the warm-up.

        On a GPU some of the work of many steps is done in one of them, so that the mean tells; on the CPU other
        processes disturb single steps, so that the median does.
        """
        typical = statistics.median if self.device.type == "cpu" else statistics.fmean
        return {phase: typical(times_s[1:] or times_s) for phase, times_s in self._times_s.items()}


def objective_cost(dynamics: Dynamics, hyper: Hyper) -> Cost:
    """Measures the outer objective and its gradients on a few chunks, at w_0."""
    problem, params = dynamics.problem, dynamics.layout.unpack(dynamics.result(dynamics.start))
    num = len(problem.outer_chunks())
    even = num if num <= MAX_CHUNKS else num - 1  # the last of many may be a small one
    parts = [problem.on_outer_chunk(i) for i in sorted(set(spread(even, MAX_CHUNKS)))]
    outer_objective(parts[0], params, hyper)
    give_back()
    device, began = dynamics.like.device, time.perf_counter()
    reset_peak(device)
    for part in parts:
        outer_objective(part, params, hyper)
    synchronize(device)
    wall_s = (time.perf_counter() - began) / len(parts)
    return Cost(wall_s * num, peak_bytes(device))


def held_bytes(device: torch.device) -> int:
    """Returns the bytes that the process holds now, counted as `peak_bytes` does."""
    give_back()
    return _held(device)


def _held(device: torch.device) -> int:
    reset_peak(device)
    return peak_bytes(device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
