"""Convolutions: the K convolutions with the tangents of the input or of the kernel as one.

    y = conv(x, w) + b         y'_k = conv(x'_k, w) + conv(x, w'_k) + b'_k

Into the first the columns go as examples, [N K, C, ...]; into the second as output channels, [K C_out, C_in, ...]. With
the tangents of data in memory as [N, K, C, ...] both are views, and their results lie so again. On the way back

    x* = conv^T(y*, w)         x*'_k = conv^T(y*'_k, w) + conv^T(y*, w'_k)         as examples, as input channels
    w* = corr(x, y*)           w*'_k = corr(x, y*'_k) + corr(x'_k, y*)             as output, as input channels

Columns can be channels only of an ungrouped convolution that is not transposed. Of any other the products with w'_k and
those for w* are taken one by one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import dot, dual, primal, rule, spread

aten = torch.ops.aten


class Geometry(NamedTuple):
    """The arguments of a convolution beside its tensors."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    @property
    def is_plain(self) -> bool:
        """Whether columns may be folded into channels."""
        return not self.transposed and self.groups == 1

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns conv(x, w), without a bias."""
        y: Tensor = aten.convolution(x, w, None, *self)
        return y

    def to_input(self, grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Returns x*, the adjoint of the input; of x only the shape matters."""
        back: Tensor = aten.convolution_backward(grad, x, w, None, *self, [True, False, False])[0]
        return back

    def to_kernel(self, grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Returns w*, the adjoint of the kernel; of w only the shape matters."""
        back: Tensor = aten.convolution_backward(grad, x, w, None, *self, [False, True, False])[1]
        return back


@rule(aten.convolution.default)
def _convolution(op: Any, x: Any, w: Any, bias: Any, *geometry: Any) -> Tensor:
    conv = Geometry(*geometry)
    value = op(primal(x), primal(w), primal(bias), *geometry)
    x_dot, w_dot, b_dot = dot(x), dot(w), dot(bias)
    parts = []
    if x_dot is not None:
        parts.append(_unfold(conv.forward(_as_examples(x_dot), primal(w)), x_dot.shape[0]))
    if w_dot is not None and conv.is_plain:
        parts.append(_from_channels(conv.forward(primal(x), w_dot.flatten(0, 1)), w_dot.shape[0]))
    elif w_dot is not None:
        parts.append(torch.stack([conv.forward(primal(x), each) for each in w_dot]))
    if b_dot is not None:
        parts.append(spread(b_dot[:, :, *(None,) * (value.ndim - 2)], value.shape))
    return dual(value, *parts)


@rule(aten.convolution_backward.default)
def _convolution_backward(
    op: Any, grad: Any, x: Any, w: Any, bias_sizes: Any, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    *geometry, wanted = rest
    conv = Geometry(*geometry)
    values = op(primal(grad), primal(x), primal(w), bias_sizes, *rest)
    by_input = dual(values[0], *_input_tangents(conv, grad, x, w)) if wanted[0] else None
    by_kernel = dual(values[1], *_kernel_tangents(conv, grad, x, w)) if wanted[1] else None
    g_dot = dot(grad)
    spatial = range(3, primal(grad).ndim + 1)
    by_bias = dual(values[2], None if g_dot is None else g_dot.sum((1, *spatial))) if wanted[2] else None
    return by_input, by_kernel, by_bias


def _input_tangents(conv: Geometry, grad: Any, x: Any, w: Any) -> list[Tensor]:
    g_dot, w_dot, like = dot(grad), dot(w), primal(x)
    parts = []
    if g_dot is not None:
        columns = g_dot.shape[0]
        shape_only = like.new_empty(1).expand(columns * like.shape[0], *like.shape[1:])
        parts.append(_unfold(conv.to_input(_as_examples(g_dot), shape_only, primal(w)), columns))
    if w_dot is not None and conv.is_plain:
        columns = w_dot.shape[0]
        shape_only = like.new_empty(1).expand(like.shape[0], columns * like.shape[1], *like.shape[2:])
        kernels = w_dot.transpose(0, 1).flatten(1, 2)
        parts.append(_from_channels(conv.to_input(primal(grad), shape_only, kernels), columns))
    elif w_dot is not None:
        parts.append(torch.stack([conv.to_input(primal(grad), like, each) for each in w_dot]))
    return parts


def _kernel_tangents(conv: Geometry, grad: Any, x: Any, w: Any) -> list[Tensor]:
    g_dot, x_dot, like = dot(grad), dot(x), primal(w)
    if not conv.is_plain:
        left = [] if g_dot is None else [torch.stack([conv.to_kernel(each, primal(x), like) for each in g_dot])]
        right = [] if x_dot is None else [torch.stack([conv.to_kernel(primal(grad), each, like) for each in x_dot])]
        return left + right
    parts = []
    if g_dot is not None:
        columns = g_dot.shape[0]
        shape_only = like.new_empty(1).expand(columns * like.shape[0], *like.shape[1:])
        parts.append(conv.to_kernel(_as_channels(g_dot), primal(x), shape_only).view(columns, *like.shape))
    if x_dot is not None:
        columns, (num_out, num_in, *window) = x_dot.shape[0], like.shape
        shape_only = like.new_empty(1).expand(num_out, columns * num_in, *window)
        folded = conv.to_kernel(primal(grad), _as_channels(x_dot), shape_only)
        parts.append(folded.view(num_out, columns, num_in, *window).transpose(0, 1))
    return parts


def _as_examples(tangents: Tensor) -> Tensor:
    """Folds [K, N, C, ...] to [N K, C, ...], examples first."""
    return tangents.transpose(0, 1).flatten(0, 1)


def _unfold(folded: Tensor, columns: int) -> Tensor:
    """Unfolds [N K, C, ...] to [K, N, C, ...]."""
    return folded.view(-1, columns, *folded.shape[1:]).transpose(0, 1)


def _as_channels(tangents: Tensor) -> Tensor:
    """Folds [K, N, C, ...] to [N, K C, ...]."""
    return tangents.transpose(0, 1).flatten(1, 2)


def _from_channels(folded: Tensor, columns: int) -> Tensor:
    """Unfolds [N, K C, ...] to [K, N, C, ...]."""
    n, _, *spatial = folded.shape
    return folded.view(n, columns, -1, *spatial).transpose(0, 1)
