"""What a mode is: a problem and lambda in, a hypergradient out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.problem import Hyper, Problem


class Mode(ABC):
    """An order of multiplication for the chain of Jacobians of a run."""

    @abstractmethod
    def differentiate(self, problem: Problem, hyper: Hyper, account: Account) -> Hypergradient:
        """The hypergradient of `problem` at `hyper`."""

    def bias(self, steps: int) -> str | None:
        """What makes the hypergradient of a run of `steps` steps differ from the exact one, a phrase; None: nothing."""
        return None

    @property
    def running(self) -> "Mode":
        """The mode that does the work: itself, or the one that it has chosen last."""
        return self

    def smaller(self, problem: Problem, hyper: Hyper) -> "Mode | None":
        """What to take in its place where memory was lacking: with fewer columns at once, or fewer states kept.

        None: it can't do with less.
        """
        return None

    def decisions(self) -> dict[str, Any]:
        """What it has decided by measuring, so that a run that is taken up again goes on alike; for a checkpoint."""
        return {}

    def decided(self, decisions: Mapping[str, Any]) -> None:  # noqa: B027
        """Takes over what `decisions` gave."""

    def __reduce__(self) -> Any:
        """Travels to another process as what it was made of, and finds out there what it has found out here."""
        if not is_dataclass(self):
            return super().__reduce__()
        return partial(type(self), **{each.name: getattr(self, each.name) for each in fields(self) if each.init}), ()
