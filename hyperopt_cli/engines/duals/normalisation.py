"""Layer, group and batch normalisation, which differ only in what they average over.

With m the mean over a group of elements, r = 1 / sqrt(variance + eps), z = (x - mean) r and y = scale z + shift,

    mean' = m(x')         r' = -r^2 m(z x')         z' = r (x' - mean') + z r' / r
    y'    = scale z' + scale' z + shift'

and on the way back, with h = scale y*,

    x*     = r (h - m(h) - z m(h z))                scale* = sum y* z               shift* = sum y*
    x*'    = r (h' - m(h') - z' m(h z) - z m(h' z + h z')) + x* r' / r

Ba et al. 2016, https://arxiv.org/abs/1607.06450; Wu and He 2018, https://arxiv.org/abs/1803.08494; Ioffe and Szegedy
2015, https://arxiv.org/abs/1502.03167.

Weight normalisation, g v / |v| (Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868), has a way back in torch
without a forward derivative: a dual takes the formula.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import FUNCTIONS, Dual, by_torch, dot, dual, primal, rule

aten = torch.ops.aten


class View(NamedTuple):
    """How a kind of normalisation sees its tensors.

    Attributes:
        grouped: the shape of x in which whole dimensions are averaged over.
        averaged: those dimensions.
        affine: the shape of scale and shift, broadcasting against `grouped`.
        summed: the dimensions of `grouped` over which the derivatives of scale and shift are sums.
    """

    grouped: tuple[int, ...]
    averaged: tuple[int, ...]
    affine: tuple[int, ...]
    summed: tuple[int, ...]

    @classmethod
    def of_group(cls, n: int, c: int, area: int, groups: int) -> "View":
        """Views x as [N, groups, C / groups, area] and averages over the last two dimensions.

        Args:
            n: N, the number of examples.
            c: C, the number of channels.
            area: the number of positions in a channel.
            groups: into how many groups the channels are divided.
        """
        return cls((n, groups, c // groups, area), (2, 3), (1, groups, c // groups, 1), (0, 3))

    @classmethod
    def of_layer(cls, shape: Sequence[int], normalized: Sequence[int]) -> "View":
        """Views x as [rest, size], with `size` elements in the normalized dimensions, which are averaged over."""
        size = torch.Size(normalized).numel()
        return cls((torch.Size(shape).numel() // size, size), (1,), (1, size), (0,))

    @classmethod
    def of_batch(cls, shape: Sequence[int]) -> "View":
        """Views x as [N, C, area] and averages over examples and positions."""
        n, c, *spatial = shape
        return cls((n, c, torch.Size(spatial).numel()), (0, 2), (1, c, 1), (0, 2))

    @property
    def statistics(self) -> tuple[int, ...]:
        """The shape of mean and r, which broadcasts against `grouped`."""
        return tuple(1 if i in self.averaged else size for i, size in enumerate(self.grouped))

    def mean(self, x: Tensor) -> Tensor:
        """Returns m(x) of a tensor or of tangents [K, ...], with the averaged dimensions kept at size 1."""
        behind = x.ndim - len(self.grouped)
        return x.mean([i + behind for i in self.averaged], keepdim=True)

    def sum(self, x: Tensor) -> Tensor:
        """Sums a tensor or tangents [K, ...] over the dimensions that share scale and shift."""
        behind = x.ndim - len(self.grouped)
        return x.sum([i + behind for i in self.summed])


def _shaped(x: Any, shape: Sequence[int]) -> tuple[Any, Tensor | None]:
    """Returns a tensor and its tangents in another shape."""
    tangents = dot(x)
    value = None if x is None else primal(x).reshape(shape)
    return value, None if tangents is None else tangents.reshape(tangents.shape[0], *shape)


def _sum(*parts: Tensor | None) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return sum(there[1:], there[0]) if there else None


def _scaled(scale: Tensor | None, x: Tensor) -> Tensor:
    return x if scale is None else scale * x


def _forward(view: View, values: tuple[Tensor, Tensor, Tensor], x: Any, scale: Any, shift: Any) -> tuple[Tensor, ...]:
    """Returns y, mean and r with their tangents, given their values."""
    y, mean, r = values
    x_, x_dot = _shaped(x, view.grouped)
    scale_, scale_dot = _shaped(scale, view.affine)
    _, shift_dot = _shaped(shift, view.affine)
    m, root = mean.reshape(view.statistics).to(x_), r.reshape(view.statistics).to(x_)
    z = (x_ - m) * root
    parts = [None if scale_dot is None else scale_dot * z, shift_dot]
    mean_dot = r_dot = None
    if x_dot is not None:
        mean_dot, along = view.mean(x_dot), view.mean(z * x_dot)
        r_dot = -root.square() * along
        parts.append(_scaled(scale_, root) * (x_dot - mean_dot - z * along))
    total = _sum(*parts)
    assert total is not None
    return (
        Dual(y, total.expand(-1, *view.grouped).reshape(-1, *y.shape).to(y.dtype)),
        dual(mean, None if mean_dot is None else mean_dot.reshape(-1, *mean.shape).to(mean.dtype)),
        dual(r, None if r_dot is None else r_dot.reshape(-1, *r.shape).to(r.dtype)),
    )


def _backward(
    view: View, values: Sequence[Tensor | None], grad: Any, x: Any, mean: Any, r: Any, scale: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns x*, scale* and shift* with their tangents, given their values (None: not wanted)."""
    g, g_dot = _shaped(grad, view.grouped)
    x_, x_dot = _shaped(x, view.grouped)
    scale_, scale_dot = _shaped(scale, view.affine)
    m, mean_dot = _shaped(mean, view.statistics)
    root, r_dot = _shaped(r, view.statistics)
    z = (x_ - m) * root
    z_dot = _sum(
        None if x_dot is None else root * x_dot,
        None if mean_dot is None else -root * mean_dot,
        None if r_dot is None else (x_ - m) * r_dot,
    )
    by_x, by_scale, by_shift = values
    return (
        None
        if by_x is None
        else dual(by_x, _input_tangents(view, by_x, (g, g_dot), (z, z_dot), (root, r_dot), (scale_, scale_dot))),
        None if by_scale is None else dual(by_scale, _scale_tangents(view, by_scale, (g, g_dot), (z, z_dot))),
        None
        if by_shift is None
        else dual(by_shift, None if g_dot is None else view.sum(g_dot).reshape(-1, *by_shift.shape)),
    )


Pair = tuple[Any, Tensor | None]


def _input_tangents(view: View, by_x: Tensor, grad: Pair, z: Pair, r: Pair, scale: Pair) -> Tensor | None:
    (g, g_dot), (z_, z_dot), (root, r_dot), (scale_, scale_dot) = grad, z, r, scale
    h = _scaled(scale_, g)
    h_dot = _sum(None if g_dot is None else _scaled(scale_, g_dot), None if scale_dot is None else scale_dot * g)
    inner = []
    if h_dot is not None:
        inner.append(h_dot - view.mean(h_dot) - z_ * view.mean(h_dot * z_))
    if z_dot is not None:
        inner.append(-(z_dot * view.mean(h * z_) + z_ * view.mean(h * z_dot)))
    total = _sum(*(root * part for part in inner), None if r_dot is None else by_x.reshape(view.grouped) / root * r_dot)
    return None if total is None else total.reshape(-1, *by_x.shape)


def _scale_tangents(view: View, by_scale: Tensor, grad: Pair, z: Pair) -> Tensor | None:
    (g, g_dot), (z_, z_dot) = grad, z
    total = _sum(None if g_dot is None else g_dot * z_, None if z_dot is None else g * z_dot)
    return None if total is None else view.sum(total).reshape(-1, *by_scale.shape)


def _in_order(x: Tensor, *others: Tensor) -> list[Tensor]:
    """All of them laid out as x is, channels last or in order, in which torch 2.11 takes them for granted."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
    layout = last if x.is_contiguous(memory_format=last) else torch.contiguous_format
    return [each.contiguous(memory_format=layout) for each in (x, *others)]


@rule(aten.native_group_norm.default)
def _group_norm(op: Any, x: Any, scale: Any, shift: Any, n: int, c: int, area: int, groups: int, eps: float) -> Any:
    (held,) = _in_order(primal(x))
    values = op(held, primal(scale), primal(shift), n, c, area, groups, eps)
    return _forward(View.of_group(n, c, area, groups), values, x, scale, shift)


@rule(aten.native_group_norm_backward.default)
def _group_norm_backward(
    op: Any, grad: Any, x: Any, mean: Any, r: Any, scale: Any, n: int, c: int, area: int, groups: int, wanted: Any
) -> Any:
    held, held_grad = _in_order(primal(x), primal(grad))
    held_scale = primal(scale)
    if scale is None and (wanted[1] or wanted[2]):  # torch 2.11 makes both derivatives like the scale
        held_scale = held.new_ones(c)
    statistics = primal(mean).contiguous(), primal(r).contiguous()
    values = op(held_grad, held, *statistics, held_scale, n, c, area, groups, wanted)
    return _backward(View.of_group(n, c, area, groups), _wanted(values, wanted), grad, x, mean, r, scale)


@rule(aten.native_layer_norm.default)
def _layer_norm(op: Any, x: Any, normalized: Any, scale: Any, shift: Any, eps: float) -> Any:
    values = op(primal(x), normalized, primal(scale), primal(shift), eps)
    return _forward(View.of_layer(primal(x).shape, normalized), values, x, scale, shift)


@rule(aten.native_layer_norm_backward.default)
def _layer_norm_backward(
    op: Any, grad: Any, x: Any, normalized: Any, mean: Any, r: Any, scale: Any, shift: Any, wanted: Any
) -> Any:
    values = op(primal(grad), primal(x), normalized, primal(mean), primal(r), primal(scale), primal(shift), wanted)
    return _backward(View.of_layer(primal(x).shape, normalized), _wanted(values, wanted), grad, x, mean, r, scale)


def _wanted(values: Any, wanted: Any) -> list[Tensor | None]:
    return [value if want else None for value, want in zip(values, wanted, strict=True)]


@rule(aten.native_batch_norm.default)
def _batch_norm(
    op: Any, x: Any, scale: Any, shift: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> Any:
    """By the statistics of the batch; by running ones it is no normalisation but a product."""
    if not training:
        return by_torch(op, (x, scale, shift, mean, variance, training, momentum, eps), {})
    values = op(primal(x), primal(scale), primal(shift), mean, variance, training, momentum, eps)
    return _forward(View.of_batch(primal(x).shape), values, x, scale, shift)


@rule(aten.native_batch_norm_backward.default)
def _batch_norm_backward(
    op: Any, grad: Any, x: Any, scale: Any, mean: Any, variance: Any, m: Any, r: Any, training: bool, *rest: Any
) -> Any:
    if not training:
        return by_torch(op, (grad, x, scale, mean, variance, m, r, training, *rest), {})
    values = op(primal(grad), primal(x), primal(scale), mean, variance, primal(m), primal(r), training, *rest)
    return _backward(View.of_batch(primal(x).shape), _wanted(values, rest[-1]), grad, x, m, r, scale)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Stands in for `torch._weight_norm`."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


FUNCTIONS[torch._weight_norm] = _weight_norm
