"""Operators that look at the same elements in another shape: on tangents, the same with K in front."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import Dual, dot, dual, primal, rule, spread

aten = torch.ops.aten


def _shifted(dim: int, ndim: int) -> int:
    """Of a tensor of `ndim` dimensions, behind K."""
    return dim % max(ndim, 1) + 1


@rule(aten.detach.default, aten.alias.default, aten.lift_fresh.default)
def _same(op: Any, x: Dual) -> Dual:
    return Dual(op(x.primal), op(x.tangents))


@rule(aten.clone.default)
def _clone(op: Any, x: Dual, *, memory_format: Any = None) -> Dual:
    return Dual(op(x.primal, memory_format=memory_format), x.tangents.clone())


@rule(aten._to_copy.default)
def _to_copy(op: Any, x: Dual, **kwargs: Any) -> Tensor:
    moved = op(x.primal, **kwargs)
    if not moved.is_floating_point() and not moved.is_complex():  # which a dual refuses
        return moved  # type: ignore[no-any-return]
    return Dual(moved, op(x.tangents, **{name: value for name, value in kwargs.items() if name != "memory_format"}))


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def _view(op: Any, x: Dual, shape: Sequence[int]) -> Dual:
    value = op(x.primal, shape)
    return Dual(value, x.tangents.reshape(x.tangents.shape[0], *value.shape))


@rule(aten.expand.default)
def _expand(op: Any, x: Dual, shape: Sequence[int], *, implicit: bool = False) -> Dual:
    value = op(x.primal, shape)
    return Dual(value, spread(x.tangents, value.shape))


@rule(aten.t.default)
def _t(op: Any, x: Dual) -> Dual:
    return Dual(op(x.primal), x.tangents.transpose(-1, -2) if x.primal.ndim == 2 else x.tangents)


@rule(aten.transpose.int)
def _transpose(op: Any, x: Dual, dim0: int, dim1: int) -> Dual:
    n = x.primal.ndim
    return Dual(
        op(x.primal, dim0, dim1), x.tangents.transpose(_shifted(dim0, n), _shifted(dim1, n)) if n else x.tangents
    )


@rule(aten.permute.default)
def _permute(op: Any, x: Dual, dims: Sequence[int]) -> Dual:
    return Dual(op(x.primal, dims), x.tangents.permute(0, *(_shifted(d, len(dims)) for d in dims)))


@rule(aten.unsqueeze.default)
def _unsqueeze(op: Any, x: Dual, dim: int) -> Dual:
    return Dual(op(x.primal, dim), x.tangents.unsqueeze(_shifted(dim, x.primal.ndim + 1)))


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(op: Any, x: Dual, *dim: Any) -> Dual:
    value = op(x.primal, *dim)
    return Dual(value, x.tangents.reshape(x.tangents.shape[0], *value.shape))


@rule(aten.select.int)
def _select(op: Any, x: Dual, dim: int, index: int) -> Dual:
    n = x.primal.ndim
    return Dual(op(x.primal, dim, index), x.tangents.select(_shifted(dim, n), index))


@rule(aten.slice.Tensor)
def _slice(op: Any, x: Dual, dim: int = 0, *bounds: Any) -> Dual:
    return Dual(op(x.primal, dim, *bounds), op(x.tangents, _shifted(dim, x.primal.ndim), *bounds))


@rule(aten.split.Tensor, aten.split_with_sizes.default)
def _split(op: Any, x: Dual, sizes: Any, dim: int = 0) -> list[Tensor]:
    parts = zip(op(x.primal, sizes, dim), op(x.tangents, sizes, _shifted(dim, x.primal.ndim)), strict=True)
    return [Dual(value, tangents) for value, tangents in parts]


@rule(aten.cat.default)
def _cat(op: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    value = op([primal(x) for x in tensors], dim)
    columns = next(d.shape[0] for d in map(dot, tensors) if d is not None)
    # a tensor [0] may stand among those of any number of dimensions
    dots = [_or_zeros(x, columns) for x in tensors if x.ndim == value.ndim]
    return dual(value, op(dots, _shifted(dim, value.ndim)))


@rule(aten.index_fill.int_Tensor)
def _index_fill(op: Any, x: Any, dim: int, index: Tensor, number: Any) -> Tensor:
    """Torch's rule under vmap fills every column with the number of the last."""
    value = op(primal(x), dim, index, primal(number))
    filled, x_dot, number_dot = torch.zeros_like(value).index_fill(dim, index, 1.0), dot(x), dot(number)
    kept = None if x_dot is None else x_dot * (1 - filled)
    new = None if number_dot is None else spread(number_dot, value.shape) * filled
    return dual(value, kept, new)


def _or_zeros(x: Tensor, columns: int) -> Tensor:
    tangents = dot(x)
    return x.new_zeros(columns, *x.shape) if tangents is None else tangents
