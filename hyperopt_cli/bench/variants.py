"""Modes as variants of a benchmark: every engine there is, and compiled steps beside the eager ones.

No engine is named here but the two that have a part: one that is added to `ENGINES` is measured.
"""

from collections.abc import Callable, Sequence

from hyperopt_cli.engines import ENGINES
from hyperopt_cli.modes import Forward, Mode, Reverse

LOOP = "reverse_over_reverse_loop"  # what every framework could do first: the others are compared with it
COMPILED = "folded"  # the one whose step is compiled too: compiling takes many times what is measured


def by_engine(asked: Sequence[str] | None = None) -> dict[str, Mode]:
    """Returns forward mode by each engine that is asked for (None for all), with the step of one compiled too.

    The step of a run is compiled for each number of rows: whoever measures it passes the same `Measurements` each time.
    """
    names = [name for name in ENGINES if asked is None or name in asked]
    modes: dict[str, Mode] = {name: Forward(engine=name, compile=False) for name in names}
    if COMPILED in names:
        modes[f"{COMPILED}, compiled"] = Forward(engine=COMPILED, compile=True)
    return modes


def of_reverse() -> dict[str, Callable[[], Mode]]:
    """Returns functions that make reverse mode, eager and compiled, by the suffix that names each variant."""
    return {"": lambda: Reverse(compile=False), ", compiled": lambda: Reverse(compile=True)}
