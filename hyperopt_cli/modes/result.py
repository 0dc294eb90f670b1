"""What a mode returns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper


class Hypergradient(NamedTuple):
    """What a mode returns.

    Attributes:
        value: E, [].
        grad: dE/dlambda, a dictionary like `hyper`.
        params: R(s_T), named.
        stats: `wall_s`; `peak_bytes`, the peak of the process's resident memory during the call (of the allocated
            memory on a GPU); `num_steps`, inner steps taken; `num_gradients` and `num_hvps`; `inner_loss`, L at every
            step, [T]; `progress`, inner steps, forward and backward, counted for checkpoints; `bias`, what biases the
            hypergradient, only where it is not exact; `checks`, what the comparison with central differences has to say
            of it, only where that is something ("not judged", "surrogate"); `growth` of the tangents or adjoints over
            the run, and `digits`, the decimal digits that it leaves (`checks/growth.py`). Modes add their own.
    """

    value: Tensor
    grad: Hyper
    params: Params
    stats: dict[str, Any]


def stats_of_checks(notes: Sequence[str]) -> dict[str, str]:
    """Returns the entry `checks` of the stats, where there is something to say."""
    return {"checks": "; ".join(notes)} if notes else {}
