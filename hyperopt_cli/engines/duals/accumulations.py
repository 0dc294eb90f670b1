"""Products and sums of exponentials along a dimension, from its first element to each.

    (y, y') of the first i elements and (z, z') of the next ones make

    cumprod         (y z, y' z + y z')
    logcumsumexp    (m, exp(y - m) y' + exp(z - m) z'),     m = log(exp y + exp z)

which is associative: taken in log2(n) steps, each over twice as many elements (Hillis and Steele 1986,
https://doi.org/10.1145/7902.7903). Nothing is divided by an element, nor weighed against a far one: torch's own
tangents are wrong there (pytorch #196701, #196705).

The way back of torch's cumprod selects by where the zeros are, which move: it is replaced by such products.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import FUNCTIONS, Dual, dual, rule

aten = torch.ops.aten

Pair = tuple[Tensor, Tensor]


@rule(aten.cumprod.default)
def _cumprod(op: Any, x: Dual, dim: int, *, dtype: Any = None) -> Tensor:
    value = op(x.primal, dim, dtype=dtype)
    return dual(value, _scanned(_product, x.primal.to(value.dtype), x.tangents.to(value.dtype), dim))


@rule(aten.logcumsumexp.default)
def _logcumsumexp(op: Any, x: Dual, dim: int) -> Tensor:
    return dual(op(x.primal, dim), _scanned(_log_of_sum, x.primal, x.tangents, dim))


def _products(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Stands in for `torch.cumprod`."""
    if input.ndim == 0 or not (dtype or input.dtype).is_floating_point:
        return torch.cumprod(input, dim, dtype=dtype)
    y, reach = input.to(dtype or input.dtype).movedim(dim, -1), 1
    while reach < y.shape[-1]:
        y = torch.cat([y[..., :reach], y[..., :-reach] * y[..., reach:]], -1)
        reach *= 2
    return y.movedim(-1, dim)


def _products_in_place(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Stands in for `Tensor.cumprod_`."""
    return input.copy_(_products(input.clone(), dim, dtype=dtype))


FUNCTIONS |= {
    torch.cumprod: _products,
    Tensor.cumprod: _products,
    Tensor.cumprod_: _products_in_place,
}


def _product(before: Pair, after: Pair) -> Pair:
    (y, y_dot), (z, z_dot) = before, after
    return y * z, y_dot * z + y * z_dot


def _log_of_sum(before: Pair, after: Pair) -> Pair:
    (y, y_dot), (z, z_dot) = before, after
    m = torch.logaddexp(y, z)
    nothing = m == -torch.inf  # sums of no term
    left, right = (torch.where(nothing, 0, (each - m).exp()) for each in (y, z))
    return m, left * y_dot + right * z_dot


def _scanned(combine: Callable[[Pair, Pair], Pair], x: Tensor, tangents: Tensor, dim: int) -> Tensor:
    """Returns the tangents of the combinations of the first i elements, `[K, *shape]`."""
    if x.ndim == 0:
        return tangents
    y, y_dot = x.movedim(dim, -1), tangents.movedim(dim % x.ndim + 1, -1)
    length, reach = y.shape[-1], 1
    while reach < length:
        before, after = (y[..., :-reach], y_dot[..., :-reach]), (y[..., reach:], y_dot[..., reach:])
        further, further_dot = combine(before, after)
        y = torch.cat([y[..., :reach], further], -1)
        y_dot = torch.cat([y_dot[..., :reach], further_dot], -1)
        reach *= 2
    return y_dot.movedim(-1, dim % x.ndim + 1)
