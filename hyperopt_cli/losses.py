"""Losses that a recipe names, differentiable in their hyperparameters too.

A loss is `(outputs, targets, **hyperparameters) -> Tensor []`; a keyword argument of it may be tuned by its name.
"""

import torch
from torch import Tensor


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: Tensor | float = 0.0) -> Tensor:
    """Mean cross entropy, with targets smoothed towards uniform (Szegedy et al. 2016, 1512.00567, section 7).

    Unlike `torch.nn.functional.cross_entropy` it takes `label_smoothing` as a tensor, and differentiates in it.

    Args:
        outputs: logits, [B, C], or [B, C, ...].
        targets: classes, [B], or [B, ...].
        label_smoothing: share of the uniform distribution, [].

    >>> logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> round(cross_entropy(logits, targets, 0.1).item(), 4)
    0.2269
    """
    picked = torch.nn.functional.cross_entropy(outputs, targets)
    if isinstance(label_smoothing, float) and label_smoothing == 0.0:
        return picked
    uniform = -torch.log_softmax(outputs, dim=1).mean()
    return (1 - label_smoothing) * picked + label_smoothing * uniform


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error; `outputs` [B, 1] are taken as [B] where the targets are."""
    return (outputs.reshape(targets.shape) - targets).square().mean()


def output(outputs: Tensor, targets: Tensor | None = None) -> Tensor:
    """The model's output is the loss: its mean, for models that need no data."""
    return outputs.mean()
