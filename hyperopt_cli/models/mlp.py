"""Multilayer perceptron."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    hidden: Sequence[int] = (100,),
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Makes linear layers with an activation between them, over the flattened input, in torch's initialisation.

    Args:
        input_shape: the shape of one input.
        num_classes: number of outputs.
        hidden: width of each hidden layer.
        activation: one of `ACTIVATIONS`.
        dropout: share of the hidden units that a training step drops.

    Returns:
        A module from [B, *input_shape] to [B, num_classes].

    Raises:
        ValueError: an unknown activation, or a width below 1.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = {activation!r}: allowed are {', '.join(map(repr, ACTIVATIONS))}")
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden = {tuple(hidden)}: every width has to be at least 1")
    layers: list[nn.Module] = [nn.Flatten()]
    for num_in, num_out in pairwise([math.prod(input_shape), *hidden]):
        layers += [nn.Linear(num_in, num_out), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else math.prod(input_shape), num_classes))
