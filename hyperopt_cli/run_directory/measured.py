"""What this folder asks of one outer step: the fields that are written down, whoever measured them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


def factors_text(factors: Mapping[str, Any]) -> dict[str, str]:
    """Returns the rational factors of reversible mode as text, such as `9/10`; of a schedule the first and the last."""
    return {label: _factor_text(factor) for label, factor in factors.items()}


def _factor_text(factor: Any) -> str:
    if isinstance(factor, Mapping):
        return ", ".join(f"{name} {_factor_text(each)}" for name, each in factor.items())
    if hasattr(factor, "low"):
        return f"{factor.low:.9g} to {factor.high:.9g}"
    return f"{_factor_text(factor[0])} ... {_factor_text(factor[-1])}" if isinstance(factor, tuple) else str(factor)


class Measured(Protocol):
    """One outer step, measured before update `outer_step`; 0 is the start.

    Entries of the four hyperparameter dictionaries have shape [], [n] or [n, groups] and share their keys.
    """

    @property
    def outer_step(self) -> int:
        """The number of updates that came before."""

    @property
    def validation_loss(self) -> float:
        """The outer objective at the end of the horizon."""

    @property
    def training_loss(self) -> float:
        """The mean inner loss over the last tenth of the horizon."""

    @property
    def hyperparameters(self) -> Mapping[str, Tensor]:
        """Natural values, e.g. a learning rate."""

    @property
    def hypergradient(self) -> Mapping[str, Tensor] | None:
        """The derivative of the validation loss by the natural values; None at a start that was left without one."""

    @property
    def raw_hyperparameters(self) -> Mapping[str, Tensor]:
        """The values that the outer optimizer moves, e.g. the logarithm of a learning rate."""

    @property
    def raw_hypergradient(self) -> Mapping[str, Tensor] | None:
        """The derivative of the validation loss by the raw values; None as above."""

    @property
    def inner_loss(self) -> Tensor:
        """The training loss at every inner step: [T]."""

    @property
    def schedules(self) -> Mapping[str, Tensor]:
        """What each optimizer argument was at every inner step: [T] or [T, groups]."""

    @property
    def stats(self) -> Mapping[str, Any]:
        """What it cost: wall_s, peak_bytes, num_steps, num_gradients, num_hvps; `bias` only where there is one.

        Where they are known, `digits` and `growth` of the hypergradient, and `noise` if that is what it is; where there
        are classes, `validation_accuracy`.
        """
