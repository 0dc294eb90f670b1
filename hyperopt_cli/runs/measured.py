"""What this folder asks of one outer step: the fields that are written down, whoever measured them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


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
    def hypergradient(self) -> Mapping[str, Tensor]:
        """The derivative of the validation loss by the natural values."""

    @property
    def raw_hyperparameters(self) -> Mapping[str, Tensor]:
        """The values that the outer optimizer moves, e.g. the logarithm of a learning rate."""

    @property
    def raw_hypergradient(self) -> Mapping[str, Tensor]:
        """The derivative of the validation loss by the raw values."""

    @property
    def inner_loss(self) -> Tensor:
        """The training loss at every inner step: [T]."""

    @property
    def schedules(self) -> Mapping[str, Tensor]:
        """What each optimizer argument was at every inner step: [T] or [T, groups]."""

    @property
    def stats(self) -> Mapping[str, Any]:
        """What it cost: wall_s, peak_bytes, num_steps, num_gradients, num_hvps; `bias` only where there is one."""
