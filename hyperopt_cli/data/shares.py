"""How much a piece of a batch, or of a split, counts in the loss of the whole.

    L = sum_i c_i L_i,      c_i = n_i / n  for a mean over examples,  W_i / W  for one over weights,  1  for a sum

where W_i adds up what the examples of piece i count: the weights of their classes, 0 for those that are ignored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Weigh = Callable[[Tensor], Tensor | None]  # targets [N, ...] -> what each example counts [N], or None: all alike


@dataclass(frozen=True)
class Shares:
    """The weight of each piece.

    Attributes:
        weights: the weight of every example, float64 [N]; None: each counts 1.
        summed: whether the loss is a sum over examples.

    >>> import torch
    >>> Shares()([torch.arange(3), torch.arange(3, 4)])
    [0.75, 0.25]
    """

    weights: Tensor | None = None
    summed: bool = False

    def __call__(self, pieces: Sequence[Tensor]) -> list[float]:
        """Returns the weight of each piece, where the pieces, indices of examples [n_i], make up a whole."""
        if self.summed:
            return [1.0] * len(pieces)
        counts = [len(piece) if self.weights is None else float(self.weights[piece].sum()) for piece in pieces]
        total = sum(counts)
        return [count / total for count in counts] if total else [1.0 / len(pieces)] * len(pieces)


MEAN = Shares()
