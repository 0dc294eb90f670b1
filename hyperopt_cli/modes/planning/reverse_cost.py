"""What reverse mode would take: with all states kept, then with ever fewer slots.

seconds = num_steps plain + T adjoint + E      num_steps = T, or what binomial recomputation from `slots` takes
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.planning.counts import Counts, numbers_of_slots
from hyperopt_cli.modes.planning.prediction import Basis, Prediction

if TYPE_CHECKING:
    from hyperopt_cli.modes.reverse import Reverse

SPARE = 0.98  # of the limit is given to slots: what a process holds is not known to the byte


def predictions(mode: "Reverse", basis: Basis) -> Iterator[Prediction]:
    """Predicts all states kept, and numbers of slots where these take less memory than there is.

    Args:
        mode: with all states kept.
        basis: what predictions stand on.
    """
    steps, state = basis.dynamics.problem.steps, state_bytes(basis.dynamics.start)

    def predicted(slots: int | None) -> Prediction:
        kept, counts = steps if slots is None else slots, Counts.of_reverse(steps, slots)
        wall_s = counts.num_steps * basis.plain_s + steps * basis.reverse.step_s["backward"]
        peak = basis.reverse.peak_bytes + (kept - basis.num_repeats) * state
        return basis.prediction(replace(mode, slots=slots), wall_s, peak, kept * state, counts)

    whole = predicted(None)
    yield whole
    assert whole.peak_bytes is not None
    most = steps - math.ceil((whole.peak_bytes - SPARE * basis.limit_bytes) / state) if not whole.fits and state else 0
    for slots in numbers_of_slots(steps, most):
        yield predicted(slots)
