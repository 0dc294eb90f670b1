"""A training loss that is a weighted sum over fixed chunks, one chunk's graph in memory at a time.

    L = sum_i c_i L_i      so that      g = sum_i c_i g_i,      H = sum_i c_i H_i,      d2L/dw dlambda = ...

Everything that a mode takes of L is linear in L: the value, the gradient, its tangents, its pullback. So each of them
is taken of one chunk after the other, and added up here; whoever takes them knows nothing of chunks.

Time is linear in the number of chunks, memory is that of one chunk. The order of the sum is that of the chunks: the
same bits each time. Several processes may have chunks of their own: each adds up its own, then `across` all their sums.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Across

Loss = Callable[[Params, StepHyper], Tensor]


@dataclass(frozen=True)
class ChunkedLoss:
    """L as a sum over chunks; called, it is L with the graph of all chunks at once.

    Attributes:
        chunks: the loss of each chunk with its weight, made when it is asked for; the same each time.
        across: processes of which each has chunks of its own; None: all of them are here.
    """

    chunks: Callable[[], Iterator[tuple[Loss, float]]]
    across: Across | None = None

    def __call__(self, params: Params, hyper: StepHyper) -> Tensor:
        """Evaluates L, the sum over all chunks."""
        value: Tensor = self.total(lambda loss: loss(params, hyper))
        return value

    def total(self, linear: Callable[[Loss], Any]) -> Any:
        """Returns what `linear`, a linear function of a loss with a tree of tensors for a value, gives for the sum.

        Raises:
            ValueError: there is no chunk.
        """
        total: Any = None
        for loss, weight in self.chunks():
            term = linear(loss)
            total = _scaled(term, weight) if total is None else _added(total, term, weight)
            del loss, term  # before the next chunk is read
        if total is None:
            raise ValueError("Chunked: got no chunk; a batch has at least one")
        return total if self.across is None else self.across.summed(total)


def _scaled(term: Any, weight: float) -> Any:
    return tree_map(lambda x: weight * x, term)


def _added(total: Any, term: Any, weight: float) -> Any:
    """Adds a weighted term, in place where no graph is made: K tangents are large."""
    if torch.is_grad_enabled():
        return tree_map(lambda x, y: x + weight * y, total, term)
    return tree_map(lambda x, y: x.add_(y, alpha=weight), total, term)
