"""Modes as variants of a benchmark: every engine there is, and the compiled step beside the eager one.

Nothing is named here: an engine that is added to `ENGINES` is measured.
"""

from collections.abc import Callable
from dataclasses import fields

from hyperopt_cli.modes import Forward, Mode
from hyperopt_cli.modes.engines import ENGINES

LOOP = "reverse_over_reverse_loop"  # what every framework could do first: the others are compared with it


def by_engine() -> dict[str, Mode]:
    """Forward mode by every engine, its step eager and compiled."""
    return {
        f"{engine}{how}": make() for engine in ENGINES for how, make in with_compiled(Forward, engine=engine).items()
    }


def with_compiled(mode: type[Mode], **arguments: object) -> dict[str, Callable[[], Mode]]:
    """What to add to a name, and the mode; compiled where the mode can be."""
    eager = {"compile": False} if _compiles(mode) else {}
    made: dict[str, Callable[[], Mode]] = {"": lambda: mode(**arguments, **eager)}
    if _compiles(mode):
        made[", compiled"] = lambda: mode(**arguments, compile=True)  # type: ignore[call-arg]
    return made


def _compiles(mode: type[Mode]) -> bool:
    return any(field.name == "compile" for field in fields(mode))  # type: ignore[arg-type]
