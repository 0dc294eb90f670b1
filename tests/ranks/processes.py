"""Work done by several real processes, each of them a rank."""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli import Forward, Problem, Reversible, hypergradient, optimizers
from hyperopt_cli.problem import Params, StepHyper
from hyperopt_cli.ranks.group import Ranks, Shard
from hyperopt_cli.ranks.joining import joined
from hyperopt_cli.ranks.launching import free_port
from hyperopt_cli.ranks.place import Place

LIMIT_S = 180.0  # after which it is a deadlock, on a busy machine too


def _import_now() -> None:
    """What engines import at their first step, half a thousand modules: here, and not in each process."""

    def loss(params: Params, hyper: StepHyper, batch: None) -> Tensor:
        return torch.nn.functional.linear(torch.ones(1, 2), params["w"]).square().sum()

    problem = Problem(
        init={"w": torch.ones(2, 2)},
        inner_loss=loss,
        outer_loss=lambda params, hyper: params["w"].sum(),
        batch=lambda t: None,
        optimizer=optimizers.SGD(momentum=0.5),
        steps=1,
    )
    for mode in (Forward(engine="folded"), Forward(engine="forward_over_reverse"), Reversible()):
        hypergradient(problem, {"lr": torch.tensor(0.1)}, mode)


_import_now()


def on_ranks(num: int, shard: Shard, work: Callable[[Ranks], Any], may_die: bool = False) -> list[Any]:
    """What `work` gives on each of `num` ranks, forked from here with one thread each; an exception is given too.

    Args:
        num: ranks.
        shard: what they divide.
        work: done by each.
        may_die: whether a rank may be killed, which gives None.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(num)]
        places = [Place(rank, num, rank, "127.0.0.1", port) if num > 1 else None for rank in range(num)]
        children = [_forked(place, shard, work, file) for place, file in zip(places, files, strict=True)]
        _await(children)
        results = [torch.load(file, weights_only=False) if file.exists() else None for file in files]
    assert may_die or None not in [result and result[0] for result in results], "a rank has died"
    return [result and result[1] for result in results]


def _forked(place: Place | None, shard: Shard, work: Callable[[Ranks], Any], file: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
        try:
            with joined(place, shard) as ranks:
                result = work(ranks)
        except Exception as error:
            result = error
        partial = file.with_suffix(".part")
        torch.save(("done", result), partial)
        partial.rename(file)
    finally:
        os._exit(0)


def _await(children: list[int]) -> None:
    limit, left = time.monotonic() + LIMIT_S, set(children)
    while left and time.monotonic() < limit:
        left -= {child for child in left if os.waitpid(child, os.WNOHANG)[0]}
        time.sleep(0.005)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not left, "ranks wait for each other"


def raised(results: list[Any]) -> list[Any]:
    """The results, where none is an exception; else that is raised."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
