"""Sums, means and softmax.

softmax      y' = y (x' - sum(y x'))
log softmax  y' = x' - sum(exp(y) x')
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import Dual, dot, dual, primal, rule

aten = torch.ops.aten


def _behind_columns(dim: Any, ndim: int) -> list[int]:
    dims = range(ndim) if dim is None or (isinstance(dim, Sequence) and not dim) else dim
    return [d % max(ndim, 1) + 1 for d in dims]


@rule(aten.sum.default, aten.mean.default)
def _over_all(op: Any, x: Dual, *, dtype: Any = None) -> Dual:
    tangents = x.tangents.flatten(1) if x.primal.ndim else x.tangents[:, None]
    reduce = torch.sum if op is aten.sum.default else torch.mean
    return Dual(op(x.primal, dtype=dtype), reduce(tangents, dim=1, dtype=dtype))


@rule(aten.sum.dim_IntList, aten.mean.dim)
def _over_dims(op: Any, x: Dual, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Dual:
    value = op(x.primal, dim, keepdim, dtype=dtype)
    if x.primal.ndim == 0:
        return Dual(value, x.tangents.to(value.dtype))
    return Dual(value, op(x.tangents, _behind_columns(dim, x.primal.ndim), keepdim, dtype=dtype))


def _of_a_line(op: Any, *arguments: Any) -> Tensor:
    """Of numbers [], as of lines of one element."""
    result: Tensor = op(*(x.unsqueeze(0) if isinstance(x, Tensor) else x for x in arguments)).squeeze(0)
    return result


@rule(aten._softmax.default)
def _softmax(op: Any, x: Dual, dim: int, half_to_float: bool) -> Tensor:
    if x.primal.ndim == 0:
        return _of_a_line(op, x, 0, half_to_float)
    y, d = op(x.primal, dim, half_to_float), dim % x.primal.ndim + 1
    weighted = x.tangents * y
    return Dual(y, torch.addcmul(weighted, weighted.sum(d, keepdim=True), y, value=-1))


@rule(aten._log_softmax.default)
def _log_softmax(op: Any, x: Dual, dim: int, half_to_float: bool) -> Tensor:
    if x.primal.ndim == 0:
        return _of_a_line(op, x, 0, half_to_float)
    y, d = op(x.primal, dim, half_to_float), dim % x.primal.ndim + 1
    return Dual(y, x.tangents - (y.exp() * x.tangents).sum(d, keepdim=True))


@rule(aten._softmax_backward_data.default)
def _softmax_backward(op: Any, grad: Any, y: Any, dim: int, dtype: Any) -> Tensor:
    """x* = y (y* - s), s = sum(y y*)."""
    if y.ndim == 0:
        return _of_a_line(op, grad, y, 0, dtype)
    g, y_, d = primal(grad), primal(y), dim % primal(y).ndim + 1
    centred = g - (g * y_).sum(dim, keepdim=True)
    g_dot, y_dot, parts = dot(grad), dot(y), []
    if g_dot is not None:
        parts.append(y_ * (g_dot - (g_dot * y_).sum(d, keepdim=True)))
    if y_dot is not None:
        parts.append(y_dot * centred - y_ * (g * y_dot).sum(d, keepdim=True))
    return dual(op(g, y_, dim, dtype), *parts)


@rule(aten._log_softmax_backward_data.default)
def _log_softmax_backward(op: Any, grad: Any, y: Any, dim: int, dtype: Any) -> Tensor:
    """x* = y* - exp(y) s, s = sum(y*)."""
    if y.ndim == 0:
        return _of_a_line(op, grad, y, 0, dtype)
    g, y_, d = primal(grad), primal(y), dim % primal(y).ndim + 1
    probabilities, parts = y_.exp(), []
    g_dot, y_dot = dot(grad), dot(y)
    if g_dot is not None:
        parts.append(g_dot - probabilities * g_dot.sum(d, keepdim=True))
    if y_dot is not None:
        parts.append(-(probabilities * g.sum(dim, keepdim=True)) * y_dot)
    return dual(op(g, y_, dim, dtype), *parts)
