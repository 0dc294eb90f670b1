"""The operators on single elements that are met most: the fewest passes over the K columns."""

from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import Dual, aligned, dot, dual, primal, rule, spread

aten = torch.ops.aten


def _term(tangents: Tensor | None, ndim: int) -> Tensor | None:
    return None if tangents is None else aligned(tangents, ndim)


@rule(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar)
def _add(op: Any, a: Any, b: Any, alpha: float = 1) -> Tensor:
    value = op(primal(a), primal(b), alpha=alpha)
    sign = alpha if "add" in op._schema.name else -alpha
    left, right = _term(dot(a), value.ndim), _term(dot(b), value.ndim)
    if left is None:
        assert right is not None
        total = right if sign == 1 else sign * right
    else:
        total = left if right is None else torch.add(left, right, alpha=sign)
    return dual(value, spread(total, value.shape).to(value.dtype))


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(op: Any, a: Any, b: Any) -> Tensor:
    value = op(primal(a), primal(b))
    left, right = _term(dot(a), value.ndim), _term(dot(b), value.ndim)
    if left is not None and right is not None:
        total = torch.addcmul(left * primal(b), right, primal(a))
    else:
        total = left * primal(b) if right is None else right * primal(a)
    return dual(value, spread(total, value.shape).to(value.dtype))


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(op: Any, a: Any, b: Any) -> Tensor:
    """(a / b)' = (a' - (a / b) b') / b."""
    value = op(primal(a), primal(b))
    left, right = _term(dot(a), value.ndim), _term(dot(b), value.ndim)
    if right is None:
        total = left / primal(b)
    else:
        slope = value / primal(b)
        total = -slope * right if left is None else torch.addcmul(left / primal(b), right, slope, value=-1)
    return dual(value, spread(total, value.shape).to(value.dtype))


@rule(aten.neg.default)
def _neg(op: Any, x: Dual) -> Dual:
    return Dual(op(x.primal), op(x.tangents))


@rule(aten.relu.default)
def _relu(op: Any, x: Dual) -> Dual:
    value = op(x.primal)
    return Dual(value, aten.threshold_backward(x.tangents, spread(value[None], value.shape), 0))


@rule(aten.threshold_backward.default)
def _threshold_backward(op: Any, grad: Any, x: Any, threshold: float) -> Tensor:
    """Linear in the gradient, piecewise constant in x."""
    value, tangents = op(primal(grad), primal(x), threshold), dot(grad)
    return dual(value, None if tangents is None else op(tangents, primal(x).expand_as(tangents), threshold))


@rule(aten.where.self)
def _where(op: Any, condition: Tensor, a: Any, b: Any) -> Tensor:
    """Selects: what is not chosen may have no finite tangent."""
    value = op(condition, primal(a), primal(b))
    a_dot, b_dot = (_term(dot(x), value.ndim) for x in (a, b))
    zero = value.new_zeros(())
    chosen = op(condition, zero if a_dot is None else a_dot, zero if b_dot is None else b_dot)
    return dual(value, spread(chosen, value.shape).to(value.dtype))


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(op: Any, x: Any, mask: Tensor, number: Any) -> Tensor:
    """Selects too."""
    value, x_dot, number_dot = op(primal(x), mask, primal(number)), dot(x), dot(number)
    kept = None if x_dot is None else spread(x_dot, value.shape).masked_fill(mask, 0)
    filled = None if number_dot is None else spread(number_dot, value.shape) * mask
    return dual(value, kept, filled)


@rule(aten.copy.default, aten.fill.Tensor)
def _copy(op: Any, x: Any, source: Any, *rest: Any) -> Tensor:
    """What was there before has no part in it; older releases of torch lack its derivative, or one under vmap."""
    value, moved = op(primal(x), primal(source), *rest), dot(source)
    return value if moved is None else dual(value, spread(moved, value.shape).to(value.dtype))


@rule(aten.native_dropout.default)
def _native_dropout(op: Any, x: Dual, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """Drawn once, by the operator itself: under vmap torch draws otherwise than the kernel of a GPU."""
    value, mask = op(x.primal, p, train)
    kept = 1.0 if train is False else 0.0 if p == 1 else 1 / (1 - p)
    return Dual(value, x.tangents * (mask.to(value.dtype) * kept)), mask


@rule(aten.native_dropout_backward.default)
def _native_dropout_backward(op: Any, grad: Dual, mask: Tensor, scale: float) -> Dual:
    return Dual(op(grad.primal, mask, scale), grad.tangents * (mask.to(grad.dtype) * scale))
