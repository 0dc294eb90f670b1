"""What may go wrong in compiling: it ends a run only where compiling was asked for.

Whatever the compiler, its runtime or the writing down of a step raises is turned into an error of this package whose
message begins with `PREFIX`. With `compile: auto` a mode takes that for a reason to run its steps as torch does.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

from hyperopt_cli.errors import HyperoptError, NoMemoryError, UsageError
from hyperopt_cli.memory import is_lacking

_LOG = logging.getLogger(__name__)
PREFIX = "compile: "


@contextmanager
def named_as_of_compiling(what: str) -> Iterator[None]:
    """Turns every error of torch into one that begins with `PREFIX`.

    Args:
        what: is done inside, a noun.

    Raises:
        UsageError: something failed, whatever the type of its error.
        NoMemoryError: for lack of memory.
    """
    try:
        yield
    except HyperoptError:
        raise
    except Exception as error:
        kind = NoMemoryError if is_lacking(error) else UsageError
        raise kind(f"{PREFIX}{what} failed ({first_line(error)}); set compile: false") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of what `error` says; its type where it says nothing."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    return shorten(lines[0], 200) if lines else type(error).__name__


def is_of_compiling(error: Exception) -> bool:
    """Returns whether the error says that a step could not be compiled, or was compiled wrongly."""
    return isinstance(error, HyperoptError) and str(error).startswith(PREFIX)


def reason_without(error: Exception) -> str:
    """Returns why a run goes on without compiling, a phrase; the log has it too."""
    reason = str(error).removeprefix(PREFIX).removesuffix("; set compile: false")
    _LOG.warning("goes on without compiling: %s", reason)
    return f"not compiled ({reason})"
