"""What an engine is: a way to take K tangents of the training gradient."""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

from torch import Tensor

from hyperopt_cli.dynamics.chunked_loss import Loss, LossInParts
from hyperopt_cli.optimizers.base import Params, StepHyper


class Tangents(NamedTuple):
    """What an engine returns for K columns.

    Attributes:
        loss: L, [].
        grads: g, named.
        loss_tangents: dL along each column, [K]: finite exactly if the column still is, at no further cost.
        grad_tangents: g', named, [K, *shape].
    """

    loss: Tensor
    grads: Params
    loss_tangents: Tensor
    grad_tangents: Params


Engine = Callable[[Loss, Params, StepHyper, Params, StepHyper, int | None], Tangents]


def in_parts(function: Engine) -> Engine:
    """The engine over a loss in parts too: it sees one after the other, and knows nothing of the sum."""

    @wraps(function)
    def engine(
        loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper, chunk_size: int | None
    ) -> Tangents:
        if not isinstance(loss, LossInParts):
            return function(loss, params, hyper, w_dot, hyper_dot, chunk_size)
        total: Tangents = loss.total(lambda part: function(part, params, hyper, w_dot, hyper_dot, chunk_size))
        return total

    return engine
