"""The loss of a recipe: what it is called with, what of it may be tuned, and how much each example counts in it."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperopt_cli.recipe.names import resolve
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.task import losses

# losses of classes, [B, C, ...] and [B, ...]: the mean is over the weights of the targets that count
OF_CLASSES = (losses.cross_entropy, functional.cross_entropy, functional.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
TENSORS = ("weight", "pos_weight")  # arguments of torch's losses that a recipe gives as lists


@dataclass(frozen=True)
class Loss:
    """A loss, which is called as `(outputs, targets, **hyperparameters) -> Tensor []`.

    Attributes:
        function: what is called.
        tunable: its arguments that lambda_t may drive.
        numbers: those that it takes as a number alone, so that nothing is differentiated in them.
        shares: those that lie in [0, 1], as their annotations say.
        arguments: what the recipe fixes.
        summed: whether it is a sum over the batch instead of a mean.
        of_classes: whether dim 1 of the outputs holds the classes, and each target is a class.
        ignore_index: targets of this number count nothing.
        class_weights: the weight of each class, [C]; None where all count alike.
    """

    function: Callable[..., Tensor]
    tunable: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    shares: frozenset[str] = frozenset()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    summed: bool = False
    of_classes: bool = False
    ignore_index: int | None = None
    class_weights: Tensor | None = None

    def __call__(self, outputs: Tensor, targets: Tensor | None, **driven: Any) -> Tensor:
        """Returns the loss of a batch, []."""
        value: Tensor = self.function(outputs, targets, **{**self.arguments, **driven})
        return value

    def to(self, device: torch.device, dtype: torch.dtype) -> "Loss":
        """Returns the same loss, with its tensors on the device and in the dtype of the outputs."""
        if isinstance(self.function, nn.Module):
            return replace(self, function=copy.deepcopy(self.function).to(device, dtype))
        moved = {name: x.to(device, dtype) if isinstance(x, Tensor) else x for name, x in self.arguments.items()}
        return replace(self, arguments=moved)

    def example_weights(self, targets: Tensor) -> Tensor | None:
        """Returns how much each example counts in the mean: the sum of the weights of its classes, 0 for ignored ones.

        Args:
            targets: [N] or [N, ...].

        Returns:
            [N] in float64, on the CPU; None: all count alike.
        """
        if not self.of_classes or targets.is_floating_point():
            return None
        targets = targets.cpu()
        counts = torch.ne(targets, -100 if self.ignore_index is None else self.ignore_index)
        if self.class_weights is None and bool(counts.all()):
            return None
        weights = counts.double()
        if self.class_weights is not None:
            known = torch.where(counts, targets, 0).long().clamp(0, len(self.class_weights) - 1)
            weights = self.class_weights.double().cpu()[known] * weights
        totals: Tensor = weights.reshape(len(targets), -1).sum(dim=1)
        return totals


def make_loss(recipe: Recipe, allow: Sequence[str]) -> Loss:
    """Makes the loss that a recipe names."""
    written = recipe.loss
    function = resolve(written.call, "loss", allow)
    arguments = written.arguments
    if getattr(function, "__module__", "").startswith(("torch.nn", "hyperopt_cli")):
        for name in TENSORS:  # anything but a list of numbers is left for the loss to refuse
            given = arguments.get(name)
            if isinstance(given, list | tuple) and all(isinstance(x, int | float) for x in given):
                arguments[name] = torch.tensor(given, dtype=torch.float64)
    if inspect.isclass(function):
        made = cast(Callable[..., Tensor], function(**arguments))
        settings = {name: getattr(made, name, None) for name in ("reduction", "ignore_index", "weight")}
        numbers = frozenset(inspect.signature(function).parameters)
        return _counted(Loss(made, numbers=numbers), isinstance(made, nn.CrossEntropyLoss | nn.NLLLoss), settings)
    tunable, numbers = _tunable(function)
    if any(name in recipe.hyperparameters for name in tunable):
        function = losses.DIFFERENTIABLE.get(function, function)
    further = list(inspect.signature(losses.DIFFERENTIABLE.get(function, function)).parameters.values())[2:]
    shares = frozenset(p.name for p in further if "share" in getattr(p.annotation, "__metadata__", ()))
    loss = Loss(function, tunable, numbers, shares, arguments)
    return _counted(loss, function in OF_CLASSES, {"ignore_index": -100, **arguments})


def _counted(loss: Loss, of_classes: bool, settings: Mapping[str, Any]) -> Loss:
    weight = settings.get("weight")
    return replace(
        loss,
        summed=settings.get("reduction") == "sum" or settings.get("size_average") is False,
        of_classes=of_classes,
        ignore_index=settings["ignore_index"] if of_classes else None,
        class_weights=weight if of_classes and isinstance(weight, Tensor) else None,
    )


def _tunable(function: Callable[..., Tensor]) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the arguments that take a tensor, and those that take a number alone."""
    further = list(inspect.signature(function).parameters.values())[2:]
    if function in losses.DIFFERENTIABLE:
        tensors, _ = _tunable(losses.DIFFERENTIABLE[function])
    elif function.__module__ == functional.__name__ or function.__module__.startswith("hyperopt_cli.task."):
        tensors = frozenset(p.name for p in further if "Tensor" in str(p.annotation) and p.name not in TENSORS)
    else:  # one's own: whether it takes tensors is tried on the first batch
        tensors = frozenset(p.name for p in further if p.annotation not in (bool, int, str))
    return tensors, frozenset(p.name for p in further) - tensors
