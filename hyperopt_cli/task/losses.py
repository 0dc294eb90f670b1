"""Losses that a recipe names, differentiable in their hyperparameters too.

A loss is `(outputs, targets, **hyperparameters) -> Tensor []`; a keyword argument of it may be tuned by its name. Those
of `torch.nn.functional` take some of them as numbers only; `DIFFERENTIABLE` names the functions here that give the same
value and take tensors.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

Share = Annotated[Tensor | float, "share"]  # in [0, 1], and tuned by its logit unless the recipe says otherwise


def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    label_smoothing: Share = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Returns the cross entropy with targets smoothed towards uniform (Szegedy et al. 2016, 1512.00567, section 7).

    Unlike `torch.nn.functional.cross_entropy`, whose value it has, it takes `label_smoothing` as a tensor, and
    differentiates in it.

    Args:
        outputs: logits, [B, C], or [B, C, ...].
        targets: classes, [B], or [B, ...]; or probabilities of the shape of `outputs`.
        label_smoothing: share of the uniform distribution, [].
        weight: of each class, [C]; None: all count alike.
        ignore_index: targets of this number count nothing.
        reduction: "mean" over what counts, by its weights, or "sum".

    >>> logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> round(cross_entropy(logits, targets, 0.1).item(), 4)
    0.2269
    """
    picked = functional.cross_entropy(outputs, targets, weight=weight, ignore_index=ignore_index, reduction=reduction)
    if isinstance(label_smoothing, float | int) and label_smoothing == 0:
        return picked
    log_p = torch.log_softmax(outputs, dim=1)
    if weight is not None:
        log_p = log_p * weight.view(-1, *[1] * (outputs.ndim - 2))
    uniform = -log_p.mean(dim=1)  # [B, ...]
    if targets.is_floating_point():
        uniform = uniform.sum() if reduction == "sum" else uniform.mean()
    else:
        counts = targets != ignore_index
        uniform = torch.where(counts, uniform, 0.0).sum()
        if reduction != "sum":
            weights = counts.to(log_p) if weight is None else weight[torch.where(counts, targets, 0)] * counts
            uniform = uniform / weights.sum()
    return (1 - label_smoothing) * picked + label_smoothing * uniform


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error, []; `outputs` [B, 1] are taken as [B] where the targets are."""
    return (outputs.reshape(targets.shape) - targets).square().mean()


def smooth_l1(outputs: Tensor, targets: Tensor, beta: Tensor | float = 1.0, reduction: str = "mean") -> Tensor:
    """Returns the value of `torch.nn.functional.smooth_l1_loss`, d^2 / (2 beta) below beta and |d| - beta / 2 above it.

    Args:
        outputs: [B, ...].
        targets: of the same shape; d is the difference.
        beta: where the square goes over into the line, [], above 0.
        reduction: "mean" or "sum".

    >>> smooth_l1(torch.tensor([0.5, 3.0]), torch.zeros(2), torch.tensor(2.0)).item()  # (1 / 16 + 2) / 2
    1.03125
    """
    away = (outputs - targets).abs()
    return _reduced(torch.where(away < beta, away.square() / (2 * beta), away - beta / 2), reduction)


def huber(outputs: Tensor, targets: Tensor, delta: Tensor | float = 1.0, reduction: str = "mean") -> Tensor:
    """Returns the value of `torch.nn.functional.huber_loss`, d^2 / 2 up to delta and delta (|d| - delta / 2) above it.

    Huber 1964, https://doi.org/10.1214/aoms/1177703732.

    Args:
        outputs: [B, ...].
        targets: of the same shape; d is the difference.
        delta: where the square goes over into the line, [], above 0.
        reduction: "mean" or "sum".

    >>> huber(torch.tensor([0.5, 3.0]), torch.zeros(2), torch.tensor(2.0)).item()  # (1 / 8 + 4) / 2
    2.0625
    """
    away = (outputs - targets).abs()
    return _reduced(torch.where(away <= delta, away.square() / 2, delta * (away - delta / 2)), reduction)


def hinge_embedding(outputs: Tensor, targets: Tensor, margin: Tensor | float = 1.0, reduction: str = "mean") -> Tensor:
    """Returns the value of `torch.nn.functional.hinge_embedding_loss`: x where y = 1, max(0, margin - x) where y = -1.

    As there, both count where y is neither.

    Args:
        outputs: distances x, [B, ...].
        targets: y, 1 or -1, of the same shape.
        margin: below which a distance costs something where y = -1, [].
        reduction: "mean" or "sum".
    """
    apart = torch.where(targets != 1, (margin - outputs).clamp_min(0), 0.0)
    return _reduced(torch.where(targets != -1, outputs, 0.0) + apart, reduction)


def output(outputs: Tensor, targets: Tensor | None = None) -> Tensor:
    """Returns the mean of the model's outputs, which is the loss of models that need no data."""
    return outputs.mean()


# functions of torch -> those here that have their value, and take a tensor where they take a number
DIFFERENTIABLE: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    functional.cross_entropy: cross_entropy,
    functional.smooth_l1_loss: smooth_l1,
    functional.huber_loss: huber,
    functional.hinge_embedding_loss: hinge_embedding,
}


def _reduced(each: Tensor, reduction: str) -> Tensor:
    return each.sum() if reduction == "sum" else each.mean()
