"""The inverse and the solution of a system by its Cholesky factor.

    A = L L^T,  A' = L' L^T + L L'^T        (upper: A = U^T U)
    X = A^-1,   X' = -X A' X
    X = A^-1 B, X' = A^-1 (B' - A' X)

Only the triangle of the factor is read. Torch's own tangents have the factors in another order, or the conjugate of
another factor (pytorch #196682, #196694).
"""

from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.modes.engines.columns.dual import Dual, aligned, dot, dual, primal, rule

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
