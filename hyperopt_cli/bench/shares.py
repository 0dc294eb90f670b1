"""What a rank does while it is measured: its share of a hypergradient. All ranks begin together."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from hyperopt_cli.bench.task import Task
from hyperopt_cli.bench.variants import COMPILED
from hyperopt_cli.commands.agreement import Agreement
from hyperopt_cli.modes import Forward, Hypergradient, hypergradient
from hyperopt_cli.modes.planning.probe import synchronize
from hyperopt_cli.ranks.group import Ranks
from hyperopt_cli.run_directory.stopping import StopFlag

ENGINE = COMPILED  # the quickest where steps are eager, as they are where ranks divide columns or batches


class Share(NamedTuple):
    """What a rank has of a hypergradient.

    Attributes:
        seconds: of the whole.
        value: E.
        grad: of all columns, as numbers.
    """

    seconds: float
    value: float
    grad: dict[str, Any]


def hypergradient_of(ranks: Ranks, task: Task, chunk_size: int | None, threads: int) -> Share:
    """The hypergradient, divided among all ranks, and how long it took here."""
    device, run, mode = task.device_of(ranks), task.divided(ranks), Forward(ENGINE, chunk_size, compile=False)
    asked = _Asked(Agreement(ranks, StopFlag(), None)) if ranks.size > 1 else None
    found: list[Hypergradient] = []

    def work() -> None:
        found.append(hypergradient(*run, mode, keeper=asked))

    with _threads(threads):
        began = _together(ranks, device)
        work() if asked is None else asked.agreement.together(work, lambda: None)
        synchronize(device)
        seconds = time.perf_counter() - began
    (result,) = found
    return Share(seconds, float(result.value), {name: x.tolist() for name, x in result.grad.items()})


class _Asked:
    """The agreement as the keeper of one hypergradient."""

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement

    def due(self) -> bool:
        return self.agreement.due()

    def barrier(self) -> None:
        self.agreement.barrier()

    def save(self, state: dict[str, Any]) -> None:
        self.agreement.save(state)


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
