"""What reverse mode would take: with all states kept, then with ever fewer slots.

seconds = num_steps plain + T adjoint + E      num_steps = T, or what binomial recomputation from `slots` takes
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.planning.counts import Counts, numbers_of_slots
from hyperopt_cli.modes.planning.prediction import Bench, Prediction

if TYPE_CHECKING:
    from hyperopt_cli.modes.reverse import Reverse

SPARE = 0.98  # of the limit is given to slots: what a process holds is not known to the byte


def predictions(mode: "Reverse", bench: Bench) -> Iterator[Prediction]:
    """Predicts all states kept, and numbers of slots where these take less memory than there is.

    Args:
        mode: with all states kept.
        bench: what predictions stand on.
    """
    steps, state = bench.dynamics.problem.steps, state_bytes(bench.dynamics.start)

    def predicted(slots: int | None) -> Prediction:
        kept, counts = steps if slots is None else slots, Counts.of_reverse(steps, slots)
        wall_s = counts.num_steps * bench.plain_s + steps * bench.reverse.step_s["backward"]
        peak = bench.reverse.peak_bytes + (kept - bench.num_repeats) * state
        return bench.prediction(replace(mode, slots=slots), wall_s, peak, kept * state, counts)

    whole = predicted(None)
    yield whole
    assert whole.peak_bytes is not None
    most = steps - math.ceil((whole.peak_bytes - SPARE * bench.limit_bytes) / state) if not whole.fits and state else 0
    for slots in numbers_of_slots(steps, most):
        yield predicted(slots)
