"""What an engine is: a way to take K tangents of the training gradient."""

from functools import wraps
from typing import NamedTuple, Protocol

from torch import Tensor

from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss, Loss
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


class Engine(Protocol):
    """A way to take K tangents of the gradient of a loss."""

    def __call__(
        self, loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper, /
    ) -> Tangents:
        """Returns L, g = dL/dw, and for each column k the tangents dL_k and g'_k = H w'_k + d2L/dw dlambda lambda'_k.

        Args:
            loss: `(w, lambda_t) -> L`, [].
            params: w, named, of any shapes.
            hyper: lambda_t, a mapping of tensors, or of mappings of tensors.
            w_dot: w', named, [K, *shape].
            hyper_dot: lambda', like `hyper`, [K, *shape].

        Raises:
            UsageError: an operator has no derivative of the kind that the engine takes.

        Example:
            L = lambda w^3 at w = 2, lambda = 1, along w and along lambda: g = 12, its tangents are 6 w and 3 w^2.

            >>> import torch
            >>> from hyperopt_cli.engines import ENGINES
            >>> out = ENGINES["folded"](
            ...     lambda params, hyper: hyper["c"] * params["w"] ** 3,
            ...     {"w": torch.tensor(2.0)},
            ...     {"c": torch.tensor(1.0)},
            ...     {"w": torch.tensor([1.0, 0.0])},
            ...     {"c": torch.tensor([0.0, 1.0])},
            ... )
            >>> out.grads["w"].item(), out.grad_tangents["w"].tolist()
            (12.0, [12.0, 12.0])
        """


def chunk_by_chunk(function: Engine) -> Engine:
    """Extends an engine to a sum over chunks: it is called for one chunk after the other."""

    @wraps(function)
    def engine(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
        if not isinstance(loss, ChunkedLoss):
            return function(loss, params, hyper, w_dot, hyper_dot)
        total: Tangents = loss.total(lambda chunk: function(chunk, params, hyper, w_dot, hyper_dot))
        return total

    return engine
