"""Where memory was lacking for a hypergradient: the same mode with less, or else which modes would fit."""

import re
from textwrap import shorten
from typing import NamedTuple

from hyperopt_cli.byte_sizes import bytes_text
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.errors import HyperoptError, NoMemoryError
from hyperopt_cli.memory import is_lacking, tidy_up
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.planning.plan import plan, seconds_text
from hyperopt_cli.modes.planning.prediction import Prediction
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import ALONE, Ranks

WAYS_OUT = (
    "take smaller batches (dataset.batch_size, or the same ones in chunks: dataset.chunk_size), a smaller model, "
    "or a device with more memory"
)


class Smaller(NamedTuple):
    """A mode that needs less memory, and what it is taken in place of, in words."""

    mode: Mode
    message: str


def smaller(
    mode: Mode, problem: Problem, hyper: Hyper, lacking: str, measurements: Measurements, ranks: Ranks = ALONE
) -> Smaller:
    """Returns the mode to take after one for which memory was lacking.

    Args:
        mode: that one.
        problem: the training run.
        hyper: lambda.
        lacking: the error, in short.
        measurements: of hypergradients before; a plan that has to do with less is changed there.
        ranks: the processes that take the run together.

    Raises:
        NoMemoryError: it can't do with less; with the modes that would fit.
    """
    tidy_up()
    before = mode.chosen(measurements)
    with surroundings(problem.precision):
        after = mode.smaller(problem, hyper, measurements, ranks)
    what = f"{before.spelled} ran out of memory ({lacking})"
    if after is not None:
        return Smaller(after, f"{what}; {after.chosen(measurements).spelled} takes its place")
    raise NoMemoryError(f"mode: {what}, and can't do with less; {_others(before, problem, hyper)}")


def in_short(error: BaseException) -> str:
    """Returns what an error says of lacking memory, in short."""
    text = str(error).strip()
    if (asked := re.search(r"(can't allocate|out of memory).*?allocate [\d.]+ \w+", text)) is not None:
        return asked[0]
    return shorten(text.partition("\n")[0], 300) or "no memory left"


def _others(mode: Mode, problem: Problem, hyper: Hyper) -> str:
    """Says which modes of another kind fit, by a plan."""
    try:
        made = plan(problem, hyper)
    except (HyperoptError, RuntimeError, MemoryError) as error:
        if isinstance(error, HyperoptError):
            return str(error)
        if is_lacking(error):
            return f"not even a few steps of each mode fit, which tell what it would take: {WAYS_OUT}"
        raise
    fitting, room = [p for p in made.predictions if p.fits and type(p.mode) is not type(mode)], made.available_bytes
    if not fitting:
        return f"no mode of another kind fits into {bytes_text(room)}: {WAYS_OUT}"
    return (
        f"by a few measured steps, there fit into {bytes_text(room)}: {', '.join(map(_shown, fitting))}; start another "
        f"run with one of these, or {WAYS_OUT}"
    )


def _shown(prediction: Prediction) -> str:
    assert prediction.wall_s is not None
    assert prediction.peak_bytes is not None
    return f"{prediction.name} ({bytes_text(prediction.peak_bytes)}, {seconds_text(prediction.wall_s)} a hypergradient)"
