"""What a method of the outer loop is: a generator that asks for training runs, and is told what came of them.

A method sees a vector of coordinates and values of E, nothing of training runs. It asks the same when it is told the
same, so a run is resumed by telling it again what it was told before: a method keeps no state that would have to be
saved, and reads like the algorithm in its paper.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from torch import Tensor

from hyperopt_cli.errors import NonFiniteError

if TYPE_CHECKING:
    from hyperopt_cli.outer.terrain import Terrain

Kind = Literal["scan", "step", "search"]


class Ask(NamedTuple):
    """A point that a method wants to know E of.

    Attributes:
        point: [K], in the method's coordinates.
        kind: what it is for, which trials.jsonl says.
        gradient: whether dE/dpoint is wanted too.
        below: the gradient is wanted only where E is below this, which a plain run tells at a quarter of the price.
        has_fallback: whether the method goes on from elsewhere if the run diverges or its hypergradient is noise; else
            the outer loop ends there with that error.
        halved_for: why the longer steps were given up that led to here.
        message: said when it is asked for, not when it is told again.
        stops_hopeless: whether its run, a plain one, may be stopped by the median rule (`median_rule.py`); the answer
            is then that of a run that diverged.
    """

    point: Tensor
    kind: Kind = "step"
    gradient: bool = False
    below: float = float("inf")
    has_fallback: bool = True
    halved_for: tuple[str, ...] = ()
    message: str | None = None
    stops_hopeless: bool = False

    @property
    def is_gated(self) -> bool:
        """Whether E decides if the gradient is taken."""
        return self.gradient and self.below < float("inf")


class Answer(NamedTuple):
    """What a method is told of one point.

    Attributes:
        value: E; infinite where the run diverged.
        grad: dE/dpoint, [K]; None where it was not asked for, or E was not below what was asked.
        error: why the run diverged, or why its hypergradient is noise.
    """

    value: float
    grad: Tensor | None = None
    error: NonFiniteError | None = None


class Known(NamedTuple):
    """A point and what a method was told of it."""

    point: Tensor
    answer: Answer

    @property
    def value(self) -> float:
        """E there, infinite where the run diverged."""
        return self.answer.value


Walk = Generator[list[Ask], list[Answer], None]


class Method(ABC):
    """A way to choose the next point.

    Attributes:
        in_units: whether it walks in steps of every hyperparameter's own size (`terrain.py`), or in raw coordinates.
    """

    in_units: ClassVar[bool] = True

    @abstractmethod
    def walk(self, terrain: "Terrain") -> Walk:
        """Yields lists of points, whose runs may be taken at the same time, and is sent the answers in their order.

        It never ends unless it has converged: the loop stops asking when the steps or the budget are used up. So a run
        with a larger budget begins as one with a smaller one.
        """

    def smallest_step(self, grad: Tensor) -> Tensor | None:
        """Returns the smallest step that it might take, with the signs of `grad`; None if E judges each step anyway."""
        return None
