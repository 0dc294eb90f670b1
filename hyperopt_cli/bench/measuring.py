"""Times of several variants of one computation, taken so that they can be compared.

Every variant is called once to warm up (what it compiles, it compiles there), once for its memory, and then in rounds,
A B C A B C ...: what drifts on a machine, such as its clock and its other processes, meets all of them alike. A ratio
is that of two medians; the ratios of single rounds say how far it can be trusted.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from hyperopt_cli.errors import UsageError
from hyperopt_cli.memory import peak_bytes
from hyperopt_cli.modes.planning.probe import held_bytes, synchronize

Call = Callable[[], Any]


class OwnTime(NamedTuple):
    """What a call returns that has timed a part of itself: that time stands for its own.

    Attributes:
        seconds: how long that part took, the work of the device included.
        result: what the call computed.
    """

    seconds: float
    result: Any


@dataclass(frozen=True)
class Timing:
    """Seconds of every round, their median and their extremes."""

    median_s: float
    low_s: float
    high_s: float
    rounds_s: tuple[float, ...]

    @classmethod
    def of(cls, rounds_s: Sequence[float]) -> "Timing":
        """Returns the timing of these rounds.

        >>> Timing.of([1.0, 4.0, 2.0]).median_s
        2.0
        """
        return cls(statistics.median(rounds_s), min(rounds_s), max(rounds_s), tuple(rounds_s))


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, with the least and the largest ratio within one round."""

    of_medians: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> "Ratio":
        """Returns the ratio of two quantities that were measured in the same rounds.

        >>> Ratio.of([2.0, 3.0, 4.0], [1.0, 2.0, 2.0])
        Ratio(of_medians=1.5, low=1.5, high=2.0)
        """
        each = [a / b for a, b in zip(above, below, strict=True)]
        return cls(statistics.median(above) / statistics.median(below), min(each), max(each))


class Samples(NamedTuple):
    """What was measured of a variant.

    Attributes:
        timing: seconds of its rounds.
        warm_up_s: seconds of its first call, or of the part of it that is timed.
        taken_bytes: the peak of a call, beyond what the process held before it.
        results: what its calls returned, round by round.
    """

    timing: Timing
    warm_up_s: float
    taken_bytes: int
    results: tuple[Any, ...]


class Refused(NamedTuple):
    """Why a variant is not available here."""

    reason: str


def interleaved(
    variants: Mapping[str, Call], repeat: int, device: torch.device, on_progress: Callable[[str], None]
) -> dict[str, Samples | Refused]:
    """Measures every variant in `repeat` rounds, in turns.

    A variant whose first call ends with a `UsageError`, or finds no more memory on the device, is left out of the
    rounds.

    Args:
        variants: the calls to measure, by name, in the order of a round.
        repeat: how many rounds there are, at least 1.
        device: where the calls compute; it is waited for before a clock is read.
        on_progress: a function that is told, in words, what is being measured.

    Returns:
        For each name its samples, or why it was left out.
    """
    gc.collect()
    gc.freeze()  # what is there already need not be looked through before every call
    try:
        return _interleaved(variants, repeat, device, on_progress)
    finally:
        gc.unfreeze()


def _interleaved(
    variants: Mapping[str, Call], repeat: int, device: torch.device, on_progress: Callable[[str], None]
) -> dict[str, Samples | Refused]:
    warm: dict[str, float] = {}
    refused: dict[str, Refused] = {}
    for name, call in variants.items():
        on_progress(f"{name}: warming up")
        try:
            warm[name], _ = timed(call, device)
        except UsageError as error:
            refused[name] = Refused(str(error))
        except torch.OutOfMemoryError as error:
            refused[name] = Refused(f"no memory left on {device}: {str(error).split('. ')[0]}")
    taken = {name: _taken_bytes(variants[name], device) for name in warm}
    rounds: dict[str, list[tuple[float, Any]]] = {name: [] for name in warm}
    for i in range(repeat):
        for name, done in rounds.items():
            on_progress(f"{name}: round {i + 1} of {repeat}")
            done.append(timed(variants[name], device))
    able = {}
    for name, done in rounds.items():
        timing = Timing.of([seconds for seconds, _ in done])
        able[name] = Samples(timing, warm[name], taken[name], tuple(result for _, result in done))
    return {name: able.get(name) or refused[name] for name in variants}


def timed(call: Call, device: torch.device) -> tuple[float, Any]:
    """Returns the seconds of a call, the work of the device included, and what it returned.

    Where the call returns a `OwnTime`, these are the seconds and the result that the mean_time holds.
    """
    gc.collect()
    synchronize(device)
    began = time.perf_counter()
    result = call()
    synchronize(device)
    seconds = time.perf_counter() - began
    return (result.seconds, result.result) if isinstance(result, OwnTime) else (seconds, result)


def _taken_bytes(call: Call, device: torch.device) -> int:
    """Returns the bytes that a call takes at its peak, beyond those that the process held before.

    This takes a call of its own: memory that is given back to the system for it would have to be taken again by a timed
    one.
    """
    gc.collect()
    before = held_bytes(device)
    call()
    return max(0, peak_bytes(device) - before)
