"""What forward mode would take: at each step the price of as many columns as it carries by then.

    seconds = sum over t of f(active_t) + E      active_t: columns carried; f: seconds of a step

f is piecewise linear through measured points: no column (a step of plain training), the fewest and the most that the
run carries. Where the most would take too long or too much memory to measure, fewer are measured and the line goes on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from hyperopt_cli.checks.examination import reason_of
from hyperopt_cli.errors import UsageError
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.planning.counts import Counts, columns_carried
from hyperopt_cli.modes.planning.prediction import Basis, Prediction, refused, repeats
from hyperopt_cli.modes.planning.probe import carrying, held_bytes, probed, spread

if TYPE_CHECKING:
    from hyperopt_cli.modes.forward import Forward

COLUMNS_AT_ONCE = (1, 8)
HOPELESS = 3  # times reverse's time: more than chunks have been seen to gain
STATES_PER_COLUMN = 4  # at least: the tangents of a state before and after, of the gradient and of the point


class Point(NamedTuple):
    """A step with so many columns: seconds, and the peak of the memory."""

    num_columns: int
    step_s: float
    peak_bytes: float


def predictions(mode: "Forward", basis: Basis) -> Iterator[Prediction]:
    """Predicts all columns at once, and fewer where these might come near reverse or save the memory that is lacking.

    Args:
        mode: with all columns at once.
        basis: what predictions stand on.
    """
    columns = columns_carried(basis.dynamics, basis.hyper)
    at_once = _prediction(mode, basis, columns)
    yield at_once
    near = HOPELESS * basis.dynamics.problem.steps * basis.reverse.whole_step_s
    if at_once.fits and at_once.wall_s is not None and at_once.wall_s > near:
        return
    for size in COLUMNS_AT_ONCE:
        if size < max(columns):
            yield _prediction(replace(mode, columns_at_once=size), basis, columns)


def _prediction(mode: "Forward", basis: Basis, columns: Sequence[int]) -> Prediction:
    counts = Counts.of_forward(columns)
    try:
        points = measured_points(mode, basis, columns)
    except (UsageError, RuntimeError, MemoryError) as error:
        return refused(mode, counts, reason_of(error))
    wall_s = sum(times * at(points, num).step_s for num, times in Counter(columns).items())
    kept = (max(columns) + 1) * state_bytes(basis.dynamics.start)
    return basis.prediction(mode, wall_s, at(points, max(columns)).peak_bytes, kept, counts)


def measured_points(mode: "Forward", basis: Basis, columns: Sequence[int]) -> list[Point]:
    """Measures a step without any column, and with the fewest and the most that the run carries.

    Args:
        mode: with its columns at once.
        basis: what predictions stand on.
        columns: that are carried at every step.
    """
    dynamics, hyper, plain_s = basis.dynamics, basis.hyper, basis.plain_s
    known = Measurements()

    def measured(num_columns: int, times: int) -> Point:
        problem, chosen = carrying(dynamics.problem, hyper, num_columns)
        probe = probed(mode, problem, chosen, spread(problem.steps, times), known)
        return Point(num_columns, probe.step_s["forward"], probe.peak_bytes)

    if max(columns) == 0:
        return [Point(0, plain_s, held_bytes(dynamics.like.device))]
    one = measured(1, 2)  # loads what torch loads late
    none = Point(0, plain_s, held_bytes(dynamics.like.device))
    column_s = max(one.step_s - plain_s, 0.1 * plain_s)
    column_bytes = max(one.peak_bytes - none.peak_bytes, STATES_PER_COLUMN * state_bytes(dynamics.start), 1)
    in_time = (basis.share_s / 2 - plain_s) / column_s
    in_memory = (basis.limit_bytes - none.peak_bytes) / 2 / column_bytes
    most = max(1, int(min(in_time, in_memory)))
    chosen = sorted({min(most, num) for num in (min(filter(None, columns)), max(columns))})
    return [none, *(measured(num, repeats(basis.share_s, plain_s + num * column_s)) for num in chosen)]


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
