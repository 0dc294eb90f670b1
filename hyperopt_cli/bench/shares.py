"""What a rank does while it is measured: its share of a hypergradient. All ranks begin together."""

import gc
import time
from typing import Any, NamedTuple

import torch

from hyperopt_cli.bench.task import Task
from hyperopt_cli.bench.variants import COMPILED
from hyperopt_cli.commands.agreement import Agreement
from hyperopt_cli.modes import Forward, Hypergradient, hypergradient
from hyperopt_cli.modes.planning.probe import synchronize
from hyperopt_cli.ranks.group import Ranks
from hyperopt_cli.run_directory.signals import StopFlag

ENGINE = COMPILED  # the quickest where steps are eager, as they are where ranks divide columns or batches


class Share(NamedTuple):
    """What a rank knows of a hypergradient once it is computed.

    Attributes:
        seconds: how long the whole hypergradient took on this rank.
        value: E.
        grad: the derivatives in all hyperparameters, as numbers.
    """

    seconds: float
    value: float
    grad: dict[str, Any]


def hypergradient_of(ranks: Ranks, task: Task, chunk_size: int | None, threads: int) -> Share:
    """Computes a hypergradient that all ranks share, and returns it with the seconds that it took on this one.

    Args:
        ranks: the processes that share it, and which of them this is.
        task: the hypergradient to compute.
        chunk_size: columns that are carried at once; None for all of this rank's.
        threads: threads of the CPU that this rank uses.
    """
    device, run, mode = task.device_of(ranks), task.divided(ranks), Forward(ENGINE, chunk_size, compile=False)
    agreement = Agreement(ranks, StopFlag(), None) if ranks.size > 1 else None
    found: list[Hypergradient] = []

    def work() -> None:
        found.append(hypergradient(*run, mode, keeper=agreement, ranks=ranks))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gc.collect()
        synchronize(device)
        ranks.highest([0.0])  # waits until all ranks are here
        began = time.perf_counter()
        work() if agreement is None else agreement.together(work, lambda: None)
        synchronize(device)
        seconds = time.perf_counter() - began
    finally:
        torch.set_num_threads(before)
    (result,) = found
    return Share(seconds, float(result.value), {name: x.tolist() for name, x in result.grad.items()})
