"""Systems, determinants and inverses by a factor of the matrix.

By the Cholesky factor,

    A = L L^T,  A' = L' L^T + L L'^T        (upper: A = U^T U)
    X = A^-1,   X' = -X A' X
    X = A^-1 B, X' = A^-1 (B' - A' X)

where only the triangle of the factor is read. Torch's own tangents have the factors in another order, or those of
another example (pytorch #196682, #196694).

Of a solution and of a determinant torch's way back reads an LU factor that has no derivative there (pytorch #192521,
#196695, #196697). A dual takes `lu_factor` instead, which has one: A = P L U, |A| = +-prod diag U.
"""

from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import FUNCTIONS, Dual, aligned, dot, dual, primal, rule

aten = torch.ops.aten


@rule(aten.cholesky_inverse.default)
def _cholesky_inverse(op: Any, factor: Dual, upper: bool = False) -> Tensor:
    value = op(factor.primal, upper)
    return dual(value, -(value @ _of_product(factor, upper) @ value))


@rule(aten.cholesky_solve.default)
def _cholesky_solve(op: Any, b: Any, factor: Any, upper: bool = False) -> Tensor:
    value, b_dot = op(primal(b), primal(factor), upper), dot(b)
    parts = [] if b_dot is None else [aligned(b_dot, value.ndim)]
    if dot(factor) is not None:
        parts.append(-(aligned(_of_product(factor, upper), value.ndim) @ value))
    return dual(value, op(sum(parts[1:], parts[0]), primal(factor), upper))


def _of_product(factor: Dual, upper: bool) -> Tensor:
    """A', [K, ..., n, n]."""
    lower, lower_dot = (x.mT.tril() if upper else x.tril() for x in (factor.primal, factor.tangents))
    half = lower_dot @ lower.mT
    return half + half.mT


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """Stands in for `torch.linalg.solve`."""
    is_vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    solution: Tensor = torch.linalg.lu_solve(
        *torch.linalg.lu_factor(A), B.unsqueeze(-1) if is_vector else B, left=left or is_vector
    )
    return solution.squeeze(-1) if is_vector else solution


def _diagonal(A: Tensor) -> tuple[Tensor, Tensor]:
    """diag U [..., n], and the sign of P [...]."""
    lu, pivots = torch.linalg.lu_factor(A)
    swapped = (pivots != torch.arange(1, A.shape[-1] + 1, device=A.device)).sum(-1)
    return lu.diagonal(dim1=-2, dim2=-1), 1 - 2 * (swapped % 2)


def _det(A: Tensor) -> Tensor:
    """Stands in for `torch.linalg.det`."""
    u, sign = _diagonal(A)
    return sign * u.prod(-1)


def _slogdet(A: Tensor) -> Any:
    """Stands in for `torch.linalg.slogdet`."""
    u, sign = _diagonal(A)
    return torch.return_types.linalg_slogdet((sign * u.sign().prod(-1), u.abs().log().sum(-1)))  # type: ignore[attr-defined]


def _logdet(input: Tensor) -> Tensor:
    """Stands in for `torch.logdet`."""
    sign, value = _slogdet(input)
    return torch.where(sign < 0, torch.nan, value)


FUNCTIONS |= {
    torch.linalg.solve: _solve,
    **dict.fromkeys((torch.linalg.det, torch.det, Tensor.det), _det),
    **dict.fromkeys((torch.linalg.slogdet, torch.slogdet, Tensor.slogdet), _slogdet),
    **dict.fromkeys((torch.logdet, Tensor.logdet), _logdet),
}
