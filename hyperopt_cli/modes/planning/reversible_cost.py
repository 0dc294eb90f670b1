"""What reversible mode would take: its steps forward and backward, one state, and the store.

seconds = T (forward + backward) + E
store   = log2(d/n) bits a parameter and step for every factor n/d
"""

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

from hyperopt_cli.checks.examination import reason_of
from hyperopt_cli.errors import FixedPointRangeError, HyperoptError, ReversalError, UsageError
from hyperopt_cli.modes.planning.counts import Counts
from hyperopt_cli.modes.planning.prediction import SHARE_OF_RUN, Basis, Prediction, refused
from hyperopt_cli.modes.planning.probe import spread
from hyperopt_cli.modes.reversal.factors import Factors
from hyperopt_cli.modes.reversal.kernels import EAGER, choose
from hyperopt_cli.program.failures import is_of_compiling

if TYPE_CHECKING:
    from hyperopt_cli.modes.reversible import Reversible

NUM_FACTORS = 64
COMPILATION_S = 30.0


def prediction(mode: "Reversible", basis: Basis, refusal: str | None) -> Prediction:
    """Predicts one state and the store.

    Args:
        mode: as it would run.
        basis: what predictions stand on.
        refusal: why the run can't be reversed; None: it can.
    """
    problem, start = basis.dynamics.problem, basis.dynamics.start
    counts = Counts.of_reversible(problem.steps)
    if refusal is not None:
        return refused(mode, counts, refusal)
    num_parameters = sum(w.numel() for w in start.params.values())
    expected_s = 2 * basis.reverse.whole_step_s
    try:
        try:
            probe = basis.probe(replace(mode, compile=_compiles(basis, num_parameters)), expected_s)
        except HyperoptError as error:
            if not is_of_compiling(error):
                raise
            probe = basis.probe(replace(mode, compile=False), expected_s)
    except (FixedPointRangeError, ReversalError) as error:
        return refused(mode, counts, str(error))
    except (UsageError, RuntimeError, MemoryError) as error:
        return refused(mode, counts, reason_of(error))
    factors = Factors(basis.dynamics, basis.hyper)
    bits = statistics.fmean(factors.bits(t) for t in spread(problem.steps, NUM_FACTORS))
    store = problem.steps * num_parameters * bits / 8
    return basis.prediction(mode, problem.steps * probe.whole_step_s, probe.peak_bytes + store, 0, counts)


def _compiles(basis: Basis, num_parameters: int) -> bool:
    """Whether to measure compiled arithmetic: where the run would compile it, and is long enough to try."""
    steps = basis.dynamics.problem.steps
    long = SHARE_OF_RUN * steps * basis.reverse.whole_step_s > COMPILATION_S
    return long and choose("auto", steps * num_parameters) is not EAGER
