"""What a mode is: a problem and lambda in, a hypergradient out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.registry import MODES, load

if TYPE_CHECKING:
    from hyperopt_cli.modes.planning.prediction import Basis, Prediction


class Mode(ABC):
    """A way to the hypergradient of a run, exact unless `bias` says otherwise: a frozen dataclass without a memory.

    Its fields are its settings in a recipe, each with a literal default in the class itself (`registry.settings`);
    `__post_init__` refuses values by a ValueError.

    Attributes:
        has_backward: whether the run is gone through once more, backwards, so that half of the steps are a third of the
            time that a display foresees.
        has_columns: whether the elements of lambda are treated one by one, so that processes may divide them.
        in_integers: whether the state is held in integers: in fixed point, at rational factors.
    """

    has_backward: ClassVar[bool] = False
    has_columns: ClassVar[bool] = False
    in_integers: ClassVar[bool] = False

    @abstractmethod
    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        """Takes the hypergradient of `problem` at `hyper`.

        A mode tells `account` of everything: it begins from `account.resume()` where that is something, adds to
        `account.counts`, calls `account.step_done` and `account.save_if_due` after each inner step (at which a run may
        stop), gives `account.growth` its tangents or adjoints, and returns `account.close(value, grad, params)`.

        Args:
            problem: the training run.
            hyper: lambda, detached.
            account: records the run.
            measurements: of earlier hypergradients; what is measured now is added.
        """

    @property
    def name(self) -> str:
        """As a user types it."""
        path = f"{type(self).__module__}:{type(self).__name__}"
        return next((name for name, entry in MODES.items() if entry.path == path), type(self).__name__.lower())

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not the default."""
        assert is_dataclass(self)
        own = {each.name: each.default for each in fields(self) if each.init and each.default is not MISSING}
        return {name: getattr(self, name) for name, default in own.items() if getattr(self, name) != default}

    @property
    def spelled(self) -> str:
        """The name with the settings that are not the default: `reverse:slots=50`."""
        given = ",".join(f"{key}={value}" for key, value in self.changed.items())
        return f"{self.name}:{given}" if given else self.name

    @property
    def may_compile_steps(self) -> bool:
        """Whether its steps are compiled where the horizon repays it."""
        return False

    def price(self, num: int, steps: int) -> float:
        """Returns what a hypergradient costs in plain training runs: a gradient is 1, a product or a tangent is 2.

        Counted alike whatever is kept, recomputed, divided or compiled, so that it is the same on every machine.

        Args:
            num: the number of hyperparameters K.
            steps: the horizon T.
        """
        return 4.0 if self.has_backward else 2.0 * num + 1.0

    def predictions(self, basis: "Basis") -> Iterable["Prediction"]:
        """Yields a row of the plan for each of its settings that is worth listing, with exact counts.

        A mode that yields none is in no plan, and auto does not take it; nor does it take what is biased.

        Args:
            basis: the problem, and what was measured of it.
        """
        return ()

    def bias(self, steps: int) -> str | None:
        """Says what makes the hypergradient of a run of `steps` steps inexact, in a phrase; None: nothing.

        What only the run shows, such as a solver that stops early, `differentiate` adds as `stats["bias"]`.
        """
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

    def check_ranks(self, hyper: Hyper, ranks: Ranks) -> None:  # noqa: B027 - most can use any number
        """Refuses processes that would have no work.

        Raises:
            UsageError: the work divides into fewer parts than there are processes.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the name of its class and its arguments, in dictionaries, text and numbers."""
        assert is_dataclass(self)
        return {
            "mode": type(self).__name__,
            "arguments": {each.name: getattr(self, each.name) for each in fields(self)},
        }


def mode_from_state_dict(state: Mapping[str, Any]) -> Mode:
    """Makes a mode of the registry from what `Mode.state_dict` returned.

    Raises:
        KeyError: there is none of that name.
    """
    by_class = {entry.path.partition(":")[2]: entry.path for entry in MODES.values()}
    made: Mode = load(by_class[state["mode"]])(**state["arguments"])
    return made
