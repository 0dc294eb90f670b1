"""A model whose loss ties the examples of a batch together."""

from torch import nn


def normalised(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Of digits: normalised over the batch, with dropout."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, num_classes)
    )
