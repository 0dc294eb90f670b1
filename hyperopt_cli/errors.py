"""The errors that a user can meet, each with the exit code that the command line gives it.

A message says what was given, what is allowed and what to do. Programmers' mistakes stay `ValueError` and `TypeError`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self


class Remedy(NamedTuple):
    """A way to go on: the command that has failed, changed. The command line prints it whole.

    Attributes:
        why: what it would do, such as `to start another run`.
        add: arguments to be added.
        drop: options, each with a value, to be left out.
        recipe: the recipe, where the command had none and needs one then.
    """

    why: str
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    recipe: str = ""


ANOTHER_RUN = Remedy("to start another run", drop=("--out", "--resume"))


class HyperoptError(Exception):
    """Root of this package's errors.

    Attributes:
        remedies: commands that go on from here.
    """

    exit_code: ClassVar[int] = 1
    remedies: tuple[Remedy, ...] = ()

    def remedied(self, *remedies: Remedy) -> Self:
        """Returns this error, with further remedies."""
        self.remedies = (*self.remedies, *remedies)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the error as it stands: `args` does not always hold what the constructor takes."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[HyperoptError], args: tuple[Any, ...], attributes: dict[str, Any]) -> HyperoptError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class RenamedWarning(DeprecationWarning):
    """Something was given by a former name, which this release still accepts."""


class UsageError(HyperoptError):
    """What was asked for is not possible as it was written; nothing was started."""

    exit_code = 2


def printable(text: str) -> str:
    """Returns `text` with escapes for what a terminal would obey rather than show, line breaks excepted."""
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says; its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Issue(NamedTuple):
    """One thing that is wrong in a recipe.

    Attributes:
        path: keys and list indices from the recipe's root, e.g. `("hyperparameters", "lr", "initial")`.
        message: what was given, what is allowed, what to do.
        where: `file:line:column` or `command line`; empty until the loader has looked it up.
        at_key: whether the key itself is at fault rather than its value.
        pattern: what `--allow-import` would have to be given, where that is what is missing.
    """

    path: tuple[str | int, ...]
    message: str
    where: str = ""
    at_key: bool = False
    pattern: str = ""

    def __str__(self) -> str:
        key = ".".join(map(str, self.path)).replace("\n", "\\n")
        return ": ".join(printable(part) for part in (self.where, key, self.message) if part)


class RecipeError(UsageError):
    """A recipe does not hold together; `issues` lists everything that was found, in the file's order.

    The message tells the first `MAX_TOLD` of them.
    """

    MAX_TOLD: ClassVar[int] = 100

    def __init__(self, issues: Sequence[Issue]) -> None:
        self.issues = tuple(issues)
        lines = list(map(str, self.issues[: self.MAX_TOLD]))
        if more := len(self.issues) - len(lines):
            lines.append(f"and {more} more; mend these first")
        super().__init__("\n".join(lines))
        if patterns := dict.fromkeys(issue.pattern for issue in self.issues if issue.pattern):
            options = (word for pattern in patterns for word in ("--allow-import", pattern))
            self.remedied(Remedy("to give that leave", tuple(options)))


class MissingPackageError(UsageError):
    """A package is not installed that is needed here and nowhere else; the library itself takes torch and numpy alone.

    Attributes:
        package: what `pip install` calls it.
    """

    def __init__(self, what: str, package: str) -> None:
        self.package = package
        super().__init__(f"{what} needs {package}, which is not installed; to install it: pip install {package}")


# what is imported where it is used, and what pip calls it
_PACKAGES = {name: name for name in ("matplotlib", "optuna", "pydantic", "rich", "tensorboard", "torchvision", "typer")}
_PACKAGES |= {"pydantic_core": "pydantic", "transformers": "transformers", "yaml": "pyyaml"}


@contextmanager
def needing(what: str) -> Iterator[None]:
    """Around imports, says which package `what` needs, and how to install it, where it is missing.

    Raises:
        MissingPackageError: an import failed for lack of a package that this one uses.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise MissingPackageError(what, package) from error


class DatasetError(UsageError):
    """A data set is missing, damaged or too small for what the recipe asks of it."""


class NoMemoryError(UsageError):
    """What was asked for does not fit into the memory."""


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


class VerificationError(HyperoptError):
    """What must agree does not: a result was compared with another, or with what it came from, and differs."""

    exit_code = 4


class CheckpointError(HyperoptError):
    """There are checkpoints, and none of them can be used."""

    exit_code = 4


class StorageError(HyperoptError):
    """Something that must be kept cannot be written: no room, no permission."""

    exit_code = 2


class Stopped(HyperoptError):
    """A signal has ended the run; what had to be kept of it is in a checkpoint.

    Attributes:
        signal: its name, such as SIGTERM.
    """

    exit_code = 75

    def __init__(self, signal: str) -> None:
        self.signal = signal
        super().__init__(f"stopped by {signal}")


class RankLostError(HyperoptError):
    """Another process of this run has ended, or can't be reached; run again, the run continues from its checkpoint."""

    exit_code = 75

    def __init__(self, reason: str) -> None:
        super().__init__(f"another rank of this run is gone, so that this one can't go on ({reason})")


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


class NoiseError(NonFiniteError):
    """A hypergradient is finite, and says nothing: it has no digits, or E contradicts it."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(step, "the hypergradient")
        self.args = (
            f"the hypergradient is noise: {why}; make the training run stable or shorter: a smaller learning rate "
            "or momentum, fewer steps",
        )


class HopelessError(NonFiniteError):
    """A plain run of a search was stopped before its end, and counts as one that diverges.

    Attributes:
        step: how many of its steps it had taken.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step, "the training loss")
        self.args = (f"stopped at step {step}: worse than the median",)


class FixedPointRangeError(NonFiniteError):
    """A number has left the range of the fixed-point arithmetic of reversible mode; it was caught before it wrapped.

    Attributes:
        name: which: "w" or a slot.
        size: how large it is.
        radix: its bits after the binary point.

    Args:
        given: radixes that were set by hand, kept in what is proposed.
    """

    def __init__(self, step: int, name: str, size: float, radix: int, given: Mapping[str, int]) -> None:
        super().__init__(step, name)
        self.name, self.size, self.radix = name, size, radix
        found = (
            f"{name} reaches {size:.3g} at inner step {step}, outside of its fixed-point range of "
            f"+-2^{62 - radix} = {2.0 ** (62 - radix):g} (radix {radix}); "
        )
        roomy = min(radix - 8, math.floor(61 - math.log2(size)))  # with a bit to spare
        if roomy < 1:
            self.args = (f"{found}no radix from 1 on has room for it: the run diverges",)
            return
        radixes = {**given, name: roomy}
        mode = f"{{name: reversible, radix: {{{', '.join(f'{part}: {bits}' for part, bits in radixes.items())}}}}}"
        self.args = (
            f"{found}if the run does not diverge, give it more room: Reversible(radix={radixes}), in a recipe mode: "
            f"{mode}",
        )
        self.remedied(Remedy("to do so", (f"mode={mode}",), (*ANOTHER_RUN.drop, "--mode")))


class ReversalError(VerificationError):
    """Running the steps backwards did not lead to the state that the run started from.

    Attributes:
        step: the last inner step t whose state was not recovered.
        num_wrong: how many numbers of the start state differ, with those left in the store.
    """

    def __init__(self, step: int, num_wrong: int) -> None:
        self.step, self.num_wrong = step, num_wrong
        super().__init__(
            f"reversible: the state at inner step {step} was not recovered; {num_wrong} numbers of the start state and "
            "its store are wrong. The gradient of a step had other bits in the backward sweep: use "
            "Reverse(slots=...), in a recipe mode: {name: reverse, slots: auto}"
        )
        self.remedied(Remedy("to do so", ("mode={name: reverse, slots: auto}",), (*ANOTHER_RUN.drop, "--mode")))
