"""What a mode would take, predicted from a few measured steps; and what all predictions stand on.

    seconds = the steps of the run, each at the price of a measured one, + the outer objective's E
    memory  = the peak of the measured steps + the states that the whole run keeps beyond theirs

Steps, gradients and Hessian-vector products are counted (`counts.py`), not measured. Measuring takes a handful of
steps of each mode: about 5% of the run, or 2 seconds where that is more.

Whole steps are measured as torch runs them: compiling one takes longer than a plan may. Where the run is long enough to
compile its own (`Prediction.may_compile`), it takes less time than is predicted; reverse mode, which then keeps what
steps have computed as far as the memory of its states suffices, takes other numbers of steps and gradients.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.planning.counts import Counts
from hyperopt_cli.modes.planning.probe import Cost, Measured, probed, spread
from hyperopt_cli.problem import Hyper
from hyperopt_cli.program.worth_compiling import may_repay

SHARE_OF_RUN, AT_LEAST_S = 0.05, 2.0
NUM_PROBES = 8
MAX_REPEATS = 6


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
        is_biased: whether its hypergradient of this run is not exact, so that auto does not take it.
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
    is_biased: bool = False

    @property
    def may_compile(self) -> bool:
        """Whether the run is long enough to compile its steps."""
        return self.mode.may_compile_steps and self.wall_s is not None and may_repay(self.wall_s)


@dataclass(frozen=True)
class Basis:
    """What all predictions stand on.

    Attributes:
        dynamics: of the problem.
        hyper: lambda.
        limit_bytes: what the process may hold in all.
        share_s: what measuring one more thing may take.
        objective: E and its gradients.
        reverse: `num_repeats` steps forward and backward by reverse mode, all states kept.
        num_repeats: of them.
    """

    dynamics: Dynamics
    hyper: Hyper
    limit_bytes: int
    share_s: float
    objective: Cost
    reverse: Measured
    num_repeats: int

    @property
    def plain_s(self) -> float:
        """Seconds of a step of plain training."""
        return self.reverse.step_s["forward"]

    def probe(self, mode: Mode, step_s: float) -> Measured:
        """Measures steps of `mode` over the horizon, as many as its share of the time allows.

        Args:
            mode: that takes them.
            step_s: what a step is expected to take.
        """
        steps = self.dynamics.problem.steps
        return probed(mode, self.dynamics.problem, self.hyper, spread(steps, repeats(self.share_s, step_s)))

    def prediction(self, mode: Mode, wall_s: float, peak_bytes: float, kept: float, counts: Counts) -> Prediction:
        """Adds the outer objective to what the steps of a run take.

        Args:
            mode: that takes them.
            wall_s: seconds of all steps.
            peak_bytes: of the process meanwhile.
            kept: bytes that are held beside the outer objective.
            counts: what is evaluated.
        """
        peak = math.ceil(max(peak_bytes, self.objective.peak_bytes + kept))
        wall_s += self.objective.wall_s
        is_biased = mode.bias(self.dynamics.problem.steps) is not None
        return Prediction(mode, mode.spelled, wall_s, peak, peak <= self.limit_bytes, *counts, is_biased=is_biased)


def refused(mode: Mode, counts: Counts, why: str) -> Prediction:
    """Returns the prediction of a mode that can't run this problem."""
    return Prediction(mode, mode.spelled, None, None, False, *counts, note=why)


def repeats(share_s: float, step_s: float) -> int:
    """Returns how many steps to measure, at least 2, where one takes `step_s` and all of them may take `share_s`."""
    return max(2, min(MAX_REPEATS, int(share_s / step_s)))
