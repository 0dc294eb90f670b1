"""The errors that a user can meet, each with the exit code that the command line gives it.

A message says what was given, what is allowed and what to do. Programmers' mistakes stay `ValueError` and `TypeError`.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class HyperoptError(Exception):
    """Root of this package's errors."""

    exit_code: ClassVar[int] = 1


class UsageError(HyperoptError):
    """What was asked for is not possible as it was written; nothing was started."""

    exit_code = 2


class Issue(NamedTuple):
    """One thing that is wrong in a recipe.

    Attributes:
        path: keys and list indices from the recipe's root, e.g. `("hyperparameters", "lr", "initial")`.
        message: what was given, what is allowed, what to do.
        where: `file:line:column` or `command line`; empty until the loader has looked it up.
        at_key: whether the key itself is at fault rather than its value.
    """

    path: tuple[str | int, ...]
    message: str
    where: str = ""
    at_key: bool = False

    def __str__(self) -> str:
        key = ".".join(map(str, self.path))
        return ": ".join(part for part in (self.where, key, self.message) if part)


class RecipeError(UsageError):
    """A recipe does not hold together; `issues` lists everything that was found, in the file's order."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        self.issues = tuple(issues)
        super().__init__("\n".join(map(str, self.issues)))


class DatasetError(UsageError):
    """A data set is missing, damaged or too small for what the recipe asks of it."""


class DetachedHyperparameterError(UsageError):
    """No part of the computation depends on these hyperparameters.

    Attributes:
        names: the detached keys of `hyper`.
    """

    def __init__(self, names: Sequence[str], message: str) -> None:
        self.names = tuple(names)
        super().__init__(message)


class NonDeterministicError(UsageError):
    """The same step, evaluated twice, gave two results: no mode could replay it."""


class NonFiniteError(HyperoptError):
    """A loss, tangent or hypergradient is NaN or infinite.

    Attributes:
        step: the inner step t (0 ... T; T is the outer objective) at which it was first seen.
        what: the quantity, in words.
    """

    exit_code = 3

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(f"{what} is not finite at inner step {step}")
