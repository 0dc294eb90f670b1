"""Seconds and memory of every mode over a whole horizon, predicted from a few measured steps.

    seconds = the steps of the run, each at the price of a measured one, + the outer objective's E
      forward      sum over t of f(active_t) + E     active_t: columns carried; f: piecewise linear, measured at the
                                                     fewest and the most columns, and at none (a plain step)
      reverse      num_steps plain + T adjoint + E   num_steps = T, or what binomial recomputation from `slots` takes
      reversible   T (there + back) + E
    memory  = the peak of the measured steps + the states that the whole run keeps beyond theirs

Steps, gradients and Hessian-vector products are counted (`counts.py`), not measured. Measuring takes a handful of
steps of each mode: about 5% of the run, or 2 seconds where that is more.

Whole steps are measured as torch runs them: compiling one takes longer than a plan may. Where the run is long enough to
compile its own (`Prediction.may_compile`), it takes less time than is predicted; reverse mode, which then keeps what
steps have computed as far as the memory of its states suffices, takes other numbers of steps and gradients.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import NamedTuple

from hyperopt_cli.checks.examination import reason_of
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.errors import FixedPointRangeError, HyperoptError, ReversalError, UsageError
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.forward import Forward
from hyperopt_cli.modes.planning.column_costs import Allowance, at, measured_points
from hyperopt_cli.modes.planning.counts import Counts, columns_carried, numbers_of_slots
from hyperopt_cli.modes.planning.probe import Cost, Measured, objective_cost, probed, spread
from hyperopt_cli.modes.reversal.factors import Factors
from hyperopt_cli.modes.reversal.kernels import EAGER, choose
from hyperopt_cli.modes.reverse import Reverse
from hyperopt_cli.modes.reversible import Reversible, refusal
from hyperopt_cli.problem import Hyper
from hyperopt_cli.program.failures import is_of_compiling
from hyperopt_cli.program.repaying import may_repay

SHARE_OF_RUN, AT_LEAST_S = 0.05, 2.0
NUM_PROBES = 8
NUM_FACTORS = 64
MAX_REPEATS = 6
COMPILATION_S = 30.0
COLUMNS_AT_ONCE = (1, 8)
HOPELESS = 3  # times reverse's time: more than chunks have been seen to gain
SPARE = 0.98  # of the limit is given to slots: what a process holds is not known to the byte


class Prediction(NamedTuple):
    """What one mode would take for one hypergradient.

    Attributes:
        mode: the instance.
        name: as a user types it, `reverse:slots=50`.
        wall_s: seconds; None where the mode refuses.
        peak_bytes: as in a hypergradient's `stats`; None where the mode refuses.
        fits: whether it runs, and within the memory.
        num_steps: inner steps taken.
        num_gradients: of the inner loss.
        num_hvps: Hessian-vector products.
        note: why the mode refuses, or "".
    """

    mode: Mode
    name: str
    wall_s: float | None
    peak_bytes: int | None
    fits: bool
    num_steps: int
    num_gradients: int
    num_hvps: int
    note: str = ""

    @property
    def may_compile(self) -> bool:
        """Whether the run is long enough to compile its steps."""
        auto = isinstance(self.mode, Forward | Reverse) and self.mode.compile == "auto"
        return auto and self.wall_s is not None and may_repay(self.wall_s)


def spelled(mode: Mode) -> str:
    """Returns the mode's name, and the arguments that are not the default: `reverse:slots=50`."""
    name, given = type(mode).__name__.lower(), arguments(mode)
    return f"{name}:{','.join(f'{key}={value}' for key, value in given.items())}" if given else name


def arguments(mode: Mode) -> dict[str, object]:
    """Returns the arguments that are not the default."""
    own = {field.name: field.default for field in fields(mode) if field.init and field.default is not MISSING}  # type: ignore[arg-type]
    return {name: getattr(mode, name) for name, default in own.items() if getattr(mode, name) != default}


def predictions(dynamics: Dynamics, hyper: Hyper, limit_bytes: int) -> list[Prediction]:
    """Predicts every mode; what keeps many states is measured last, so that none inherits its peak.

    Args:
        dynamics: of the problem at `hyper`.
        hyper: lambda, detached.
        limit_bytes: what the process may hold in all.
    """
    bench = _Bench.of(dynamics, hyper, limit_bytes)
    reversible = _reversible(bench)
    return [*_forward(bench), *_reverse(bench), reversible]


@dataclass(frozen=True)
class _Bench:
    """What all predictions stand on.

    Attributes:
        dynamics: of the problem.
        hyper: lambda.
        limit_bytes: of the process.
        share_s: what measuring one more thing may take.
        objective: E and its gradients.
        reverse: `num_repeats` steps there and back, all states kept.
        num_repeats: of them.
    """

    dynamics: Dynamics
    hyper: Hyper
    limit_bytes: int
    share_s: float
    objective: Cost
    reverse: Measured
    num_repeats: int

    @classmethod
    def of(cls, dynamics: Dynamics, hyper: Hyper, limit_bytes: int) -> "_Bench":
        problem, objective = dynamics.problem, objective_cost(dynamics, hyper)
        rough_s = _both(probed(Reverse(), problem, hyper, spread(problem.steps, 2)))
        share_s = max(AT_LEAST_S, SHARE_OF_RUN * problem.steps * rough_s) / NUM_PROBES
        num = _repeats(share_s, rough_s)
        reverse = probed(Reverse(), problem, hyper, spread(problem.steps, num))
        return cls(dynamics, hyper, limit_bytes, share_s, objective, reverse, num)

    @property
    def plain_s(self) -> float:
        """A step of plain training."""
        return self.reverse.step_s["forward"]

    def probe(self, mode: Mode, step_s: float) -> Measured:
        """Steps of `mode` over the horizon, as many as its share of the time allows."""
        steps = self.dynamics.problem.steps
        return probed(mode, self.dynamics.problem, self.hyper, spread(steps, _repeats(self.share_s, step_s)))

    def prediction(self, mode: Mode, wall_s: float, peak_bytes: float, kept: float, counts: Counts) -> Prediction:
        """With the outer objective, beside which `kept` bytes are held."""
        peak = math.ceil(max(peak_bytes, self.objective.peak_bytes + kept))
        return Prediction(mode, spelled(mode), wall_s + self.objective.wall_s, peak, peak <= self.limit_bytes, *counts)


def _repeats(share_s: float, step_s: float) -> int:
    return max(2, min(MAX_REPEATS, int(share_s / step_s)))


def _both(measured: Measured) -> float:
    """A step there and back."""
    return sum(measured.step_s.values())


def _reverse(bench: _Bench) -> Iterator[Prediction]:
    """All states, then ever fewer slots."""
    steps, state = bench.dynamics.problem.steps, state_bytes(bench.dynamics.start)

    def predicted(slots: int | None) -> Prediction:
        kept, counts = steps if slots is None else slots, Counts.of_reverse(steps, slots)
        wall_s = counts.num_steps * bench.plain_s + steps * bench.reverse.step_s["backward"]
        peak = bench.reverse.peak_bytes + (kept - bench.num_repeats) * state
        return bench.prediction(Reverse(slots=slots), wall_s, peak, kept * state, counts)

    whole = predicted(None)
    yield whole
    assert whole.peak_bytes is not None
    most = steps - math.ceil((whole.peak_bytes - SPARE * bench.limit_bytes) / state) if not whole.fits and state else 0
    for slots in numbers_of_slots(steps, most):
        yield predicted(slots)


def _forward(bench: _Bench) -> Iterator[Prediction]:
    """All columns at once, and in chunks where these might come near reverse or save the memory that is lacking."""
    columns = columns_carried(bench.dynamics, bench.hyper)
    at_once = _forward_in_chunks(bench, Forward(), columns)
    yield at_once
    near = HOPELESS * bench.dynamics.problem.steps * _both(bench.reverse)
    if at_once.fits and at_once.wall_s is not None and at_once.wall_s > near:
        return
    for size in COLUMNS_AT_ONCE:
        if size < max(columns):
            yield _forward_in_chunks(bench, Forward(columns_at_once=size), columns)


def _forward_in_chunks(bench: _Bench, mode: Forward, columns: Sequence[int]) -> Prediction:
    counts = Counts.of_forward(columns)
    allowance = Allowance(bench.share_s, bench.limit_bytes, lambda step_s: _repeats(bench.share_s, step_s))
    try:
        points = measured_points(mode, bench.dynamics, bench.hyper, bench.plain_s, columns, allowance)
    except (UsageError, RuntimeError, MemoryError) as error:
        return refused(mode, counts, reason_of(error))
    wall_s = sum(times * at(points, num).step_s for num, times in Counter(columns).items())
    kept = (max(columns) + 1) * state_bytes(bench.dynamics.start)
    return bench.prediction(mode, wall_s, at(points, max(columns)).peak_bytes, kept, counts)


def refused(mode: Mode, counts: Counts, why: str) -> Prediction:
    """Returns the prediction of a mode that can't run this problem."""
    return Prediction(mode, spelled(mode), None, None, False, *counts, note=why)


def _reversible(bench: _Bench) -> Prediction:
    """One state and the store."""
    problem, start = bench.dynamics.problem, bench.dynamics.start
    mode, counts = Reversible(), Counts.of_reversible(problem.steps)
    if (why := refusal(problem, bench.hyper)) is not None:
        return refused(mode, counts, why)
    num_parameters = sum(w.numel() for w in start.params.values())
    try:
        try:
            probe = bench.probe(Reversible(compile=_compiles(bench, num_parameters)), 2 * _both(bench.reverse))
        except HyperoptError as error:
            if not is_of_compiling(error):
                raise
            probe = bench.probe(Reversible(compile=False), 2 * _both(bench.reverse))
    except (FixedPointRangeError, ReversalError) as error:
        return refused(mode, counts, str(error))
    except (UsageError, RuntimeError, MemoryError) as error:
        return refused(mode, counts, reason_of(error))
    factors = Factors(bench.dynamics, bench.hyper)
    bits = statistics.fmean(factors.bits(t) for t in spread(problem.steps, NUM_FACTORS))
    store = problem.steps * num_parameters * bits / 8
    return bench.prediction(mode, problem.steps * _both(probe), probe.peak_bytes + store, 0, counts)


def _compiles(bench: _Bench, num_parameters: int) -> bool:
    """Whether to measure compiled arithmetic: where the run would compile it, and is long enough to try."""
    steps = bench.dynamics.problem.steps
    long = SHARE_OF_RUN * steps * _both(bench.reverse) > COMPILATION_S
    return long and choose("auto", steps * num_parameters) is not EAGER
