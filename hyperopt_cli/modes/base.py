"""What a mode is: a problem and lambda in, a hypergradient out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import ALONE, Ranks


class Mode(ABC):
    """An order of multiplication for the chain of Jacobians of a run: a frozen dataclass that remembers nothing."""

    @abstractmethod
    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        """Takes the hypergradient of `problem` at `hyper`.

        Args:
            problem: the training run.
            hyper: lambda, detached.
            account: records the run.
            measurements: of earlier hypergradients; what is measured now is added.
        """

    def bias(self, steps: int) -> str | None:
        """Says what makes the hypergradient of a run of `steps` steps inexact, in a phrase; None: nothing."""
        return None

    def chosen(self, measurements: Measurements) -> "Mode":
        """Returns the mode that does the work: itself, or the one that it has chosen last."""
        return self

    def smaller(
        self, problem: Problem, hyper: Hyper, measurements: Measurements, ranks: Ranks = ALONE
    ) -> "Mode | None":
        """Returns the mode to take where memory was lacking: with fewer columns at once, or fewer states kept.

        Args:
            problem: the training run.
            hyper: lambda.
            measurements: of earlier hypergradients.
            ranks: the processes that take the run together.

        Returns:
            The mode; None: it can't do with less.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns the name of its class and its arguments, in dictionaries, text and numbers."""
        assert is_dataclass(self)
        return {
            "mode": type(self).__name__,
            "arguments": {each.name: getattr(self, each.name) for each in fields(self)},
        }


def mode_from_state_dict(state: Mapping[str, Any], modes: Iterable[type[Mode]]) -> Mode:
    """Makes one of `modes` from what `Mode.state_dict` returned."""
    by_name = {mode.__name__: mode for mode in modes}
    return by_name[state["mode"]](**state["arguments"])
