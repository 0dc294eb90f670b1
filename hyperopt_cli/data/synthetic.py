"""A classification task made of numbers: a mixture of Gaussians that can be learned but not to zero error."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hyperopt_cli.data.seeds import generator
from hyperopt_cli.data.splits import InMemory, Splits
from hyperopt_cli.errors import DatasetError

COARSE = 4


def synthetic(
    num_examples: int = 1000,
    num_features: int = 20,
    num_classes: int = 10,
    noise: float = 0.4,
    seed: int = 0,
    image_shape: tuple[int, int, int] | None = None,
) -> Splits:
    """Draws examples around one centre a class, `input = centre[target] + noise * normal`.

    Centres are unit vectors at random, so two of them are about sqrt(2) apart in any dimension, and `noise` alone says
    how much the classes overlap.

    Args:
        num_examples: to train and validate on; a fifth as many (rounded up) are drawn for the test split.
        num_features: of each example, unless `image_shape` is given.
        num_classes: as even in number as `num_examples` allows.
        noise: standard deviation of each feature around its centre.
        seed: of everything that is drawn.
        image_shape: (channels, height, width) draws smooth pictures as centres instead.

    Returns:
        Inputs float32 [N, num_features] or [N, *image_shape]; targets int64 [N].

    Raises:
        DatasetError: a count is below one, or noise is negative.
    """
    counts = {"num_examples": num_examples, "num_features": num_features, "num_classes": num_classes}
    for name, count in counts.items():
        if count < 1:
            raise DatasetError(f"{name} = {count}: it has to be at least 1")
    if noise < 0:
        raise DatasetError(f"noise = {noise}: a standard deviation can't be negative")
    shape = (num_features,) if image_shape is None else tuple(image_shape)
    rng = generator(seed, "synthetic")
    if len(shape) == 3:  # white noise would hide the classes from convolutions
        coarse = torch.randn(num_classes, shape[0], COARSE, COARSE, generator=rng)
        centres = interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=True)
    else:
        centres = torch.randn(num_classes, *shape, generator=rng)
    norms = centres.flatten(1).norm(dim=1).clamp_min(torch.finfo(centres.dtype).tiny)
    centres = centres / norms.reshape(-1, *[1] * len(shape))
    train = _draw(centres, num_examples, noise, rng)
    return Splits(train, _draw(centres, -(-num_examples // 5), noise, rng), shape, num_classes)


def _draw(centres: Tensor, num_examples: int, noise: float, rng: torch.Generator) -> InMemory:
    targets = torch.randperm(num_examples, generator=rng) % len(centres)
    inputs = centres[targets] + noise * torch.randn(num_examples, *centres.shape[1:], generator=rng)
    return InMemory(inputs, targets)
