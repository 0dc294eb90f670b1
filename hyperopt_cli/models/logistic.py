"""Logistic regression: one linear layer, a convex training problem."""

import math

from torch import nn


def logistic(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Makes a linear map from the flattened input to one logit a class, which starts at zero.

    Args:
        input_shape: the shape of one input.
        num_classes: number of outputs.

    Returns:
        A module from [B, *input_shape] to [B, num_classes].
    """
    linear = nn.Linear(math.prod(input_shape), num_classes)
    # convex: any start will do, and this one needs no seed
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)
