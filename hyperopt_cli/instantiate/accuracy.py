"""Accuracy: the share of targets that are the class of the largest output."""

from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """How many targets were met, and how many there are; ignored targets count in neither."""

    right: int
    num: int


def has_classes(outputs: Tensor, targets: Tensor, class_dim: int) -> bool:
    """Returns whether outputs [B, C, ...] hold a number for each class of targets [B, ...], with C in `class_dim`."""
    shape = list(outputs.shape)
    return (
        not targets.is_floating_point()
        and outputs.ndim == targets.ndim + 1
        and outputs.ndim > 1
        and shape.pop(class_dim) > 1
        and shape == list(targets.shape)
    )


def accuracy(outputs: Tensor, targets: Tensor, class_dim: int = 1, ignore_index: int | None = None) -> Counts | None:
    """Returns how many targets are met; None where outputs do not hold a number for each class.

    Args:
        outputs: [B, C, ...], or [B, ..., C] with `class_dim` -1.
        targets: classes, [B, ...].
        class_dim: the dimension of the classes.
        ignore_index: targets of this number are ignored.

    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1]))
    Counts(right=1, num=2)
    """
    if not has_classes(outputs, targets, class_dim):
        return None
    counts = targets >= 0 if ignore_index is None else targets != ignore_index
    met = (outputs.argmax(dim=class_dim) == targets) & counts
    return Counts(int(met.sum()), int(counts.sum()))
