"""What a rank does while it is measured: its share of a hypergradient, or a piece of it by itself.

Each function is called on every rank of a team. They begin together.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from hyperopt_cli.bench.laps import gradients, lap, steps_but_the_first
from hyperopt_cli.bench.scaling import NUM_ASKED
from hyperopt_cli.bench.task import Task
from hyperopt_cli.bench.variants import COMPILED
from hyperopt_cli.commands.agreement import Agreement
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.modes import Forward, Hypergradient, hypergradient
from hyperopt_cli.modes.planning.probe import synchronize
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.run_directory.stopping import StopFlag

ENGINE = COMPILED  # the quickest where steps are eager, as they are where ranks divide columns or batches
UNITS_TIMED, SUMS_TIMED, ASKED_TIMED = 8, 10, 200


class Share(NamedTuple):
    """What a rank has of a hypergradient.

    Attributes:
        seconds: of the whole.
        step_s: of each step but the first.
        value: E.
        grad: of all columns, as numbers.
    """

    seconds: float
    step_s: float
    value: float
    grad: dict[str, Any]


def hypergradient_of(ranks: Ranks, task: Task, chunk_size: int | None, threads: int) -> Share:
    """The hypergradient, divided among all ranks, and how long it took here."""
    device, run, mode = task.device_of(ranks), task.divided(ranks), Forward(ENGINE, chunk_size, compile=False)
    asked = _Asked(Agreement(ranks, StopFlag(), None)) if ranks.size > 1 else None
    ends: list[float] = []
    found: list[Hypergradient] = []

    def on_step(phase: str, done: int, steps: int) -> None:
        if done in (1, steps):
            synchronize(device)
            ends.append(time.perf_counter())

    def work() -> None:
        found.append(hypergradient(*run, mode, on_step=on_step, keeper=asked))

    with _threads(threads):
        began = _together(ranks, device)
        work() if asked is None else asked.agreement.together(work, lambda: None)
        synchronize(device)
        seconds = time.perf_counter() - began
    (result,) = found
    step_s = (ends[-1] - ends[0]) / (task.steps - 1)
    return Share(seconds, step_s, float(result.value), {name: x.tolist() for name, x in result.grad.items()})


def gradient_s(ranks: Ranks, task: Task) -> float:
    """Seconds of a gradient of a whole batch, by each rank for itself."""
    device, run = task.device_of(ranks), task.run(ranks, task.columns, 1)
    _together(ranks, device)
    with surroundings():
        return gradients(run, UNITS_TIMED, device).seconds


def step_s(ranks: Ranks, task: Task, columns: int, examples: int | None) -> float:
    """Seconds of a step, by each rank for itself.

    Args:
        ranks: which all do the same.
        task: whose step it is.
        columns: of the tangents.
        examples: the first ones of the batch, taken as a part of it is; None: the batch as it is.
    """
    device, run = task.device_of(ranks), task.run(ranks, columns, 1 + max(2, UNITS_TIMED // columns))
    if examples is not None:
        run = task.on_part(run, slice(0, examples), ALONE)
    _together(ranks, device)
    return steps_but_the_first(Forward(ENGINE, compile=False), run, device).seconds


def sum_s(ranks: Ranks, task: Task, num: int) -> float:
    """Seconds until every rank has the sum of `num` numbers of each."""
    device = task.device_of(ranks)
    numbers = torch.zeros(num, dtype=getattr(torch, task.sizes.dtype), device=device)
    _together(ranks, device)
    return lap(lambda: ranks.summed(numbers), SUMS_TIMED, device).seconds


def asked_s(ranks: Ranks) -> float:
    """Seconds of a message of the agreement."""
    _together(ranks, torch.device("cpu"))
    return lap(lambda: ranks.highest([0.0] * NUM_ASKED), ASKED_TIMED, torch.device("cpu")).seconds


class _Asked:
    """The agreement as the keeper of one hypergradient."""

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement

    def due(self) -> bool:
        return self.agreement.due()

    def meet(self) -> None:
        self.agreement.meet()

    def keep(self, left: dict[str, Any]) -> None:
        self.agreement.keep(0, left["progress"], left)


def _together(ranks: Ranks, device: torch.device) -> float:
    """When all begin."""
    gc.collect()
    synchronize(device)
    ranks.highest([0.0])
    return time.perf_counter()


@contextmanager
def _threads(num: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
