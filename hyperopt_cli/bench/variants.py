"""Modes as variants of a benchmark: every engine there is, and compiled steps beside the eager ones.

No engine is named here but the two that have a part: one that is added to `ENGINES` is measured.
"""

from collections.abc import Callable, Sequence

from hyperopt_cli.engines import ENGINES
from hyperopt_cli.modes import Forward, Mode, Reverse

LOOP = "reverse_over_reverse_loop"  # what every framework could do first: the others are compared with it
COMPILED = "folded"  # the one whose step is compiled too: compiling takes many times what is measured


def by_engine(asked: Sequence[str] | None = None) -> dict[str, Mode]:
    """Forward mode by the engines that are asked for, by all of them for None; the step of one compiled too.

    The step of a run is compiled for each number of rows: whoever measures it passes the same `Measurements` each time.
    """
    names = [name for name in ENGINES if asked is None or name in asked]
    modes: dict[str, Mode] = {name: Forward(engine=name, compile=False) for name in names}
    if COMPILED in names:
        modes[f"{COMPILED}, compiled"] = Forward(engine=COMPILED, compile=True)
    return modes


def of_reverse() -> dict[str, Callable[[], Mode]]:
    """What to add to a name, and reverse mode so."""
    return {"": lambda: Reverse(compile=False), ", compiled": lambda: Reverse(compile=True)}
