"""From examples as stored to a model's inputs, on the device: cast, normalise, crop and flip at random."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyperopt_cli.stopping import stoppable

UINT8_SCALE = 255.0


class Normalization(NamedTuple):
    """The affine map (input - shift) / scale; both are broadcastable to one input."""

    shift: Tensor
    scale: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Normalization":
        """Returns the same map on the device and in the dtype of the inputs."""
        return Normalization(self.shift.to(device, dtype), self.scale.to(device, dtype))

    def apply(self, inputs: Tensor) -> Tensor:
        """Maps inputs [B, ...] as stored to the map's dtype; int64 stands for indices and stays as it is."""
        if inputs.dtype == torch.int64:
            return inputs
        return (inputs.to(self.shift.dtype) - self.shift) / self.scale


class Draws(NamedTuple):
    """What is random in the augmentation of a batch, with one entry for each picture.

    Attributes:
        corners: row and column of a crop's corner in the padded picture, [2, B].
        mirrored: whether the picture is mirrored, [B].
    """

    corners: Tensor
    mirrored: Tensor

    def of(self, start: int, stop: int) -> "Draws":
        """Returns the draws of the pictures `start` to `stop`, the last one excluded."""
        return Draws(self.corners[:, start:stop], self.mirrored[start:stop])


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips of pictures [B, C, H, W].

    Attributes:
        crop: pixels of zeros added on each side, behind the normalisation (so they are the mean colour), before a
            picture of the old size is cut out at random.
        flip: whether left and right are mirrored, with probability one half.
    """

    crop: int = 0
    flip: bool = False

    def draw(self, batch: int, rng: torch.Generator) -> Draws | None:
        """Draws what is random in a batch of this size; returns None without crop and flip."""
        if not (self.crop or self.flip):
            return None
        # all is drawn whatever is used, so that switching one on leaves the other's draws alone
        corners = torch.randint(0, 2 * self.crop + 1, (2, batch), generator=rng)
        return Draws(corners, torch.rand(batch, generator=rng) < 0.5)

    def apply(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Augments each picture by its draws."""
        corners, mirrored = draws
        batch, _, height, width = inputs.shape
        rows = corners[0, :, None] + torch.arange(height)
        columns = torch.arange(width).expand(batch, width)
        if self.flip:
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        columns = corners[1, :, None] + columns
        return _pick(
            pad(inputs, [self.crop] * 4),
            rows.to(inputs.device, non_blocking=True),
            columns.to(inputs.device, non_blocking=True),
        )


def identity_normalization(dtype: torch.dtype) -> Normalization:
    """Returns a map, in float64, that divides inputs stored as uint8 by 255 and leaves all others as they are."""
    scale = UINT8_SCALE if dtype == torch.uint8 else 1.0
    return Normalization(torch.zeros((), dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def channel_statistics(chunks: Iterable[Tensor]) -> Normalization:
    """Returns the mean and standard deviation of each channel, over all examples and pixels.

    Sums are taken in float64 chunk by chunk, which is exact for uint8.

    Args:
        chunks: [B, C, ...] on the CPU; the same chunks give the same bits.

    Returns:
        A shift and a scale [C, 1, ...] in float64; a constant channel is shifted only.
    """
    count, total, squares, rank = 0, torch.zeros(()), torch.zeros(()), 0
    for chunk in stoppable(chunks):
        values = chunk.double()
        reduced = [dim for dim in range(values.ndim) if dim != 1]
        count += values.numel() // values.shape[1] if values.ndim > 1 else values.numel()
        total, squares = total + values.sum(reduced), squares + values.square().sum(reduced)
        rank = values.ndim
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    constant = deviation <= 1e-7 * mean.abs()  # what rounding leaves of a channel without spread
    shape = (-1, *[1] * (rank - 2)) if rank > 1 else ()
    return Normalization(mean.reshape(shape), torch.where(constant, 1.0, deviation).reshape(shape))


def _pick(padded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the pixels at rows [B, H] and columns [B, W] of each picture [B, C, H', W'], as [B, C, H, W]."""
    batch, channels, _, width = padded.shape
    position = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # [B, H W], into the flattened picture
    picked = padded.flatten(2).gather(2, position[:, None].expand(-1, channels, -1))
    return picked.reshape(batch, channels, rows.shape[1], columns.shape[1])
