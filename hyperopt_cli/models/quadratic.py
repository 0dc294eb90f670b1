"""A quadratic bowl: training dynamics with a closed form, without data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Quadratic(nn.Module):
    """The function sum_i h_i x_i^2 / 2 of a parameter x [n], with fixed eigenvalues h [n]."""

    eigenvalues: Tensor

    def __init__(self, eigenvalues: Tensor, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start)
        self.register_buffer("eigenvalues", eigenvalues)

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """Returns the loss, []; `inputs` are accepted, as a model's are, and ignored."""
        del inputs
        return (self.eigenvalues * self.x**2).sum() / 2


def quadratic(eigenvalues: Sequence[float], start: Sequence[float]) -> nn.Module:
    """Makes the loss sum(eigenvalues * x**2) / 2, whose parameter x starts at `start`.

    Args:
        eigenvalues: the eigenvalues of the Hessian, n numbers.
        start: x at step 0, n numbers.

    Returns:
        A module that returns its own loss, [], in float64 until it is cast.

    Raises:
        ValueError: the two lengths differ, or are 0.

    >>> quadratic([2.0, 1.0], [1.0, 3.0])().item()
    5.5
    """
    if len(eigenvalues) != len(start) or not len(start):
        raise ValueError(
            f"{len(eigenvalues)} eigenvalues and a start of {len(start)} numbers: as many of both, at least 1"
        )
    return Quadratic(*(torch.tensor(list(numbers), dtype=torch.float64) for numbers in (eigenvalues, start)))
