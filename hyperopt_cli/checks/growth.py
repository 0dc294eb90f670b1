"""How much a run amplifies what moves its state, and how many decimal digits that leaves of the hypergradient.

A perturbation d of s_t has become A_{T-1} ... A_t d at the end of the run. The tangents and the adjoints that the modes
carry anyway are multiplied by the same Jacobians, so that their norms show how large that product is:

    forward                growth = max over t of |Z_t| / ((t - t_0 + 1) |Z_{t_0}|)        t_0: the first with Z != 0
    reverse, reversible    growth = max over t of |alpha_t| / |alpha_T|

|.| is the largest absolute value among the parameters' entries: it never overflows before they do, and has the same
bits however columns are divided. Tangents are divided by the number of steps: each step adds its own B_t, so that
without any amplification Z_t grows in proportion to t. Neither is less than 1.

Each step rounds w by a relative unit roundoff u (6e-8 in float32, 1.1e-16 in float64), and that is amplified like any
other perturbation. Once it is as large as w itself, the run that is differentiated is one of many:

    digits = -log10(max(u growth, u_product))          u_product: of products in tf32 or bf16, at most so many are there

This is what growth alone says: an estimate. It is high by two or three digits (in a chaotic map that is known exactly),
because each step rounds anew and a loss bends within less than the length of w; by as much again of tangents, which the
first B_t need not move along what grows. It is low where w itself grows (a linear recursion amplifies its rounding no
more than w) and where tangents begin far smaller than they go on. Where it matters, `outer/noise.py` asks E.

Metz, Freeman, Schoenholz and Kachman 2021, "Gradients are not all you need", https://arxiv.org/abs/2111.05803: the
spectrum of that product of Jacobians is what makes gradients of long or chaotic runs useless.

Cost: one reduction over Z_t or alpha_t a step; the host reads the norms once, at the end.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Precision

ROUNDOFF_OF_PRODUCTS = {"tf32": 2.0**-11, "bf16": 2.0**-9}


def growth_of_tangents(norms: Sequence[float]) -> float:
    """Returns by how much the run has amplified its tangents.

    Args:
        norms: |Z_t| for t = 0 ... T.

    Example:
        >>> growth_of_tangents([0, 2, 4, 6])
        1.0
        >>> growth_of_tangents([0, 1, 20, 300])
        100.0
    """
    first = next((t for t, norm in enumerate(norms) if norm > 0), len(norms))
    return max((norm / (t * norms[first]) for t, norm in enumerate(norms[first:], start=1)), default=1.0)


def growth_of_adjoints(norms: Sequence[float]) -> float:
    """Returns by how much the run has amplified its adjoints.

    Args:
        norms: |alpha_t| for t = 0 ... T, zero where the sweep did not come.

    Example:
        >>> growth_of_adjoints([300, 20, 1])
        300.0
    """
    last = next((norm for norm in reversed(norms) if norm > 0), 1.0)
    return max(1.0, max(norms) / last)


def digits_left(growth: float, dtype: torch.dtype, precision: Precision | None = None) -> float:
    """Returns the decimal digits of a hypergradient, as growth alone says; 0 or more.

    Args:
        growth: of the run's tangents or adjoints.
        dtype: of the parameters.
        precision: of the inner gradient's products.

    Example:
        >>> round(digits_left(1e4, torch.float32), 1), digits_left(1e20, torch.float64)
        (3.2, 0.0)
    """
    rounding = max(torch.finfo(dtype).eps / 2 * growth, ROUNDOFF_OF_PRODUCTS.get(precision or "", 0.0))
    return max(0.0, -math.log10(rounding)) if math.isfinite(rounding) else 0.0


class Growth:
    """Keeps the norms of one hypergradient's tangents or adjoints.

    Args:
        steps: T.
        like: a tensor of the parameters' dtype and device.

    Attributes:
        norms: |Z_t| or |alpha_t| for t = 0 ... T, where the parameters lie, [T + 1].
    """

    def __init__(self, steps: int, like: Tensor) -> None:
        kind = torch.float32 if like.device.type == "mps" else torch.float64
        self.norms = torch.zeros(steps + 1, dtype=kind, device=like.device)
        self._dtype = like.dtype
        self._of_tangents = False

    def tangents(self, t: int, z: Sequence[Params]) -> None:
        """Records the largest size of a number in Z_t, over the columns of this process, given in blocks."""
        self._of_tangents = True
        self._write(t, z)

    def adjoint(self, t: int, params: Params) -> None:
        """Records the largest size of a number in the part of alpha_t that belongs to w."""
        self._write(t, [params])

    def _write(self, t: int, trees: Sequence[Params]) -> None:
        norms = [torch.linalg.vector_norm(x, math.inf) for tree in trees for x in tree.values() if x.numel()]
        if norms:
            self.norms[t] = norms[0] if len(norms) == 1 else torch.stack([x.double() for x in norms]).amax()

    def load_norms(self, norms: Tensor) -> None:
        """Takes over norms: those of a run that was interrupted, or the largest of several processes' columns."""
        self.norms.copy_(norms)

    def stats(self, precision: Precision | None) -> Mapping[str, Any]:
        """Returns `growth`, 1 where no norm was recorded, and `digits` to a tenth."""
        norms = self.norms.tolist()
        if not any(norms):
            return {"growth": 1.0, "digits": round(digits_left(1.0, self._dtype, precision), 1)}
        growth = growth_of_tangents(norms) if self._of_tangents else growth_of_adjoints(norms)
        return {"growth": growth, "digits": round(digits_left(growth, self._dtype, precision), 1)}
