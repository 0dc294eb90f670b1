"""Processes of this machine that are measured as the ranks of a run, and wait in between without using a processor."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from hyperopt_cli.allocator import keep_freed_memory
from hyperopt_cli.errors import HyperoptError, RankLostError
from hyperopt_cli.ranks.group import Shard
from hyperopt_cli.ranks.joining import joined
from hyperopt_cli.ranks.launching import free_port
from hyperopt_cli.ranks.place import Place

T = TypeVar("T")
LONGEST_APART_S = 60.0  # from an error of one to the answers of the others, which may wait for it


class Team:
    """Processes that wait for work, and do it together as the ranks of a run.

    Args:
        pipes: the connections to them, by rank.
    """

    def __init__(self, pipes: "list[Connection[Any, Any]]") -> None:
        self._pipes = pipes

    def all(self, work: Callable[..., T], *arguments: Any) -> list[T]:
        """Returns what `work(ranks, *arguments)` gives on each rank; what one raises is raised here.

        Raises:
            RankLostError: a rank has ended, or does not answer after another's error.
        """
        try:
            for member in self._pipes:
                member.send((work, arguments))
            answers: dict[Connection[Any, Any], Any] = {}
            error: Exception | None = None
            while waiting := [pipe for pipe in self._pipes if pipe not in answers]:
                ready = wait(waiting, None if error is None else LONGEST_APART_S)
                if not ready:
                    raise RankLostError("a process of the benchmark waits for another that has failed") from error
                for pipe in ready:
                    assert isinstance(pipe, Connection)
                    answers[pipe], raised = pipe.recv()
                    error = error or raised
            if error is not None:
                raise error
            return [answers[pipe] for pipe in self._pipes]
        except (EOFError, OSError) as lost:
            raise RankLostError("a process of the benchmark has ended; there may be too little memory") from lost


@contextmanager
def team(size: int, shard: Shard, threads: int) -> Iterator[Team]:
    """A context in which `size` ranks run; they end with it.

    Args:
        size: how many processes there are; a single one joins no group.
        shard: what they divide.
        threads: threads of each process.
    """
    context, port = get_context("spawn"), free_port()
    pipes, processes = [], []
    try:
        for rank in range(size):
            here, there = context.Pipe()
            place = Place(rank, size, rank, "127.0.0.1", port) if size > 1 else None
            process = context.Process(target=_serve, args=(place, shard, threads, there), daemon=True)
            process.start()
            there.close()  # so that its end is noticed
            pipes.append(here)
            processes.append(process)
        yield Team(pipes)
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(LONGEST_APART_S)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(place: Place | None, shard: Shard, threads: int, pipe: "Connection[Any, Any]") -> None:
    """Runs one rank, which takes work until it is told that there is no more, or the process that gives it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the one that gives it
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    keep_freed_memory()
    torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError), joined(place, shard) as ranks:
        while (given := pipe.recv()) is not None:
            work, arguments = given
            answer, error = None, None
            try:
                answer = work(ranks, *arguments)
            except Exception as raised:
                # as it is where the receiver acts on its type, else with its traceback as text
                acts = isinstance(raised, HyperoptError | torch.OutOfMemoryError)
                error = raised if acts else RuntimeError("".join(traceback.format_exception(raised)))
            pipe.send((answer, error))
