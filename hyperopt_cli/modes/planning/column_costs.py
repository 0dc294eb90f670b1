"""What a step of forward mode costs over the number of columns that it carries.

Piecewise linear through measured points: no column (a step of plain training), the fewest and the most that the run
carries. Where the most would take too long or too much memory to measure, fewer are measured and the line goes on.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.forward import Forward
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.planning.probe import carrying, held_bytes, probed, spread
from hyperopt_cli.problem import Hyper

STATES_PER_COLUMN = 4  # at least: the tangents of a state before and after, of the gradient and of the point


class Point(NamedTuple):
    """A step with so many columns: seconds, and the peak of the memory."""

    num_columns: int
    step_s: float
    peak_bytes: float


class Allowance(NamedTuple):
    """What measuring may take.

    Attributes:
        share_s: seconds, for one number of columns.
        limit_bytes: what the process may hold in all.
        repeats: seconds of a step -> how many of them.
    """

    share_s: float
    limit_bytes: int
    repeats: Callable[[float], int]


def measured_points(
    mode: Forward, dynamics: Dynamics, hyper: Hyper, plain_s: float, columns: Sequence[int], allowance: Allowance
) -> list[Point]:
    """Measures a step without any column, and with the fewest and the most that the run carries.

    Args:
        mode: with its chunk size.
        dynamics: of the problem.
        hyper: lambda.
        plain_s: a step of plain training.
        columns: at every step.
        allowance: what measuring may take.
    """

    known = Measurements()

    def measured(num_columns: int, repeats: int) -> Point:
        problem, chosen = carrying(dynamics.problem, hyper, num_columns)
        probe = probed(mode, problem, chosen, spread(problem.steps, repeats), known)
        return Point(num_columns, probe.step_s["forward"], probe.peak_bytes)

    if max(columns) == 0:
        return [Point(0, plain_s, held_bytes(dynamics.like.device))]
    one = measured(1, 2)  # loads what torch loads late
    none = Point(0, plain_s, held_bytes(dynamics.like.device))
    column_s = max(one.step_s - plain_s, 0.1 * plain_s)
    column_bytes = max(one.peak_bytes - none.peak_bytes, STATES_PER_COLUMN * state_bytes(dynamics.start), 1)
    in_time = (allowance.share_s / 2 - plain_s) / column_s
    in_memory = (allowance.limit_bytes - none.peak_bytes) / 2 / column_bytes
    most = max(1, int(min(in_time, in_memory)))
    chosen = sorted({min(most, num) for num in (min(filter(None, columns)), max(columns))})
    return [none, *(measured(num, allowance.repeats(plain_s + num * column_s)) for num in chosen)]


def at(points: Sequence[Point], num_columns: int) -> Point:
    """Returns the cost of a step with `num_columns` columns, on the line through the measured points around it."""
    if len(points) == 1:
        return points[0]
    last = next((i for i, point in enumerate(points) if i and num_columns <= point.num_columns), len(points) - 1)
    low, high = points[last - 1], points[last]
    share = (num_columns - low.num_columns) / (high.num_columns - low.num_columns)
    return Point(
        num_columns,
        low.step_s + share * max(0.0, high.step_s - low.step_s),
        low.peak_bytes + share * max(0.0, high.peak_bytes - low.peak_bytes),
    )
