"""Layers that several models share: normalisation by name, 3 x 3 convolutions, He initialisation, input checks."""

import math
from typing import Literal, get_args

from torch import nn

Norm = Literal["group", "batch", "none"]
MAX_GROUPS = 8


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Returns the layer that normalises an activation [B, channels, H, W].

    Args:
        norm: "group" (up to 8 groups, the most that divide `channels`), "batch", or "none" (the identity).
        channels: channels of the activation.

    Raises:
        ValueError: an unknown name.
    """
    if norm == "group":
        return nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm = {norm!r}: allowed are {', '.join(map(repr, get_args(Norm)))}")


def conv3x3(num_in: int, num_out: int, stride: int = 1) -> nn.Conv2d:
    """Returns a 3 x 3 convolution without bias that keeps height and width at stride 1."""
    return nn.Conv2d(num_in, num_out, kernel_size=3, stride=stride, padding=1, bias=False)


def initialize_he(model: nn.Module) -> None:
    """Draws every convolution from N(0, 2 / fan out), as He et al. 2015 (https://arxiv.org/abs/1502.01852, eq. 14)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def image_channels(input_shape: tuple[int, ...], smallest: int = 8) -> int:
    """Returns the number of channels of pictures of this shape.

    Raises:
        ValueError: the shape is not (channels, height, width), or smaller than `smallest` pixels.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"input_shape = {tuple(input_shape)}: allowed is (channels, height, width) with at least "
            f"{smallest} x {smallest} pixels; take mlp or logistic for other inputs"
        )
    return input_shape[0]


def blocks_per_stage(depth: int, stem: int) -> int:
    """Returns n, the blocks of a stage, for a residual network of 6 n + `stem` layers.

    Raises:
        ValueError: no whole n >= 1 gives this depth.
    """
    num_blocks, remainder = divmod(depth - stem, 6)
    if num_blocks < 1 or remainder:
        allowed = ", ".join(str(6 * n + stem) for n in range(1, 5))
        raise ValueError(f"depth = {depth}: allowed is 6 n + {stem}, that is {allowed}, ...")
    return num_blocks
