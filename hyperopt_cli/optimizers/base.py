"""What an inner optimizer is: a pure update rule over whole dictionaries, with the slots that it keeps.

    s_{t+1} = U(s_t, g_t, lambda_t, t)        s = (w, slots)

Modes derive everything they need from `update` (jvp, vjp); no optimizer holds a formula for a derivative.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor

Params = dict[str, Tensor]
Slots = dict[str, Params]
StepHyper = dict[str, Tensor | dict[str, Tensor]]


@dataclass(frozen=True)
class InnerOptimizer(ABC):
    """Base of every inner optimizer; subclass it (as a frozen dataclass) for your own.

    The dataclass's fields that are numbers are the arguments which a key of `hyper` of the same name drives; the
    constructor's value is the default for what `hyper` leaves out.

    Attributes:
        elementwise: `update`, `gradient_at` and `result` treat every element of every parameter alike. They are then
            called with all parameters laid end to end as one vector under one name, which costs a few large operations
            instead of many small ones.
        taken_from_1: arguments x of which the rule uses 1 - x, so that float32 would lose digits near 1.
    """

    elementwise: ClassVar[bool] = False
    taken_from_1: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuses what `torch.optim` refuses.

        Raises:
            ValueError: a number below 0, or a decay outside [0, 1).
        """
        for name in self.argument_names():
            value = getattr(self, name)
            if name in self.taken_from_1 and not 0 <= value < 1:
                raise ValueError(f"{name}: got {value}; must be at least 0 and below 1")
            if name != "dampening" and not value >= 0:
                raise ValueError(f"{name}: got {value}; must be at least 0")

    @classmethod
    def argument_names(cls) -> tuple[str, ...]:
        """The arguments that a key of `hyper` may drive."""
        return tuple(field.name for field in fields(cls) if field.type in (float, "float"))

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        """The slots at t = 0, each a dictionary like `params`.

        Args:
            params: w_0.
            driven: the arguments that `hyper` drives; a slot may be left out only where none of them could need it.
        """
        return {}

    @abstractmethod
    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        """w_{t+1} and the slots at t + 1.

        Pure and free of branches on the value of a hyperparameter: `momentum == 0` must stay differentiable. Read
        arguments by `self.arguments(hyper, name, w)`.

        Args:
            params: w_t.
            slots: as `slots` made them, or the last `update`.
            grads: g_t, like `params`.
            hyper: lambda_t, per name a scalar tensor or a mapping from parameter name to a tensor that broadcasts.
            step: t, from 0.
        """

    def gradient_at(self, params: Params, slots: Slots, hyper: StepHyper, step: int) -> Params:
        """P(s_t), where the gradient is taken: w_t itself for nearly every rule."""
        return params

    def result(self, params: Params, slots: Slots) -> Params:
        """R(s_T), what the run yields: w_T itself for nearly every rule."""
        return params

    def arguments(self, hyper: StepHyper, name: str, like: Tensor) -> SimpleNamespace:
        """Every argument for the parameter `name`: a tensor where `hyper` drives it, else the constructor's number."""
        chosen = {}
        for argument in self.argument_names():
            value = hyper.get(argument, getattr(self, argument))
            if isinstance(value, Mapping):
                value = value.get(name, getattr(self, argument))
            chosen[argument] = _fitting(value, like) if isinstance(value, Tensor) else float(value)
        return SimpleNamespace(**chosen)


def _fitting(value: Tensor, like: Tensor) -> Tensor:
    """A scalar keeps its precision, which promotes nothing; anything larger takes the parameter's dtype."""
    return value.reshape(()) if value.numel() == 1 else value.to(like)


def zeros(params: Params) -> Params:
    """A slot of zeros."""
    return {name: torch.zeros_like(w) for name, w in params.items()}


def decayed(gradient: Tensor, weight_decay: Tensor | float, w: Tensor) -> Tensor:
    """`g + weight_decay w`; a constant 0 that no hyperparameter drives costs nothing."""
    if isinstance(weight_decay, float) and weight_decay == 0.0:
        return gradient
    return gradient + weight_decay * w


def sqrt(v: Tensor) -> Tensor:
    """The square root of `v >= 0` whose derivative at 0 is 0.

    A second moment of exactly 0 belongs to a coordinate whose gradient was 0 throughout (a dead unit, a padded
    embedding). The root's own derivative is infinite there; what it multiplies is 0, and the product is meant to be 0.
    Below 0 the root is NaN.
    """
    zero = v == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, v).sqrt())
