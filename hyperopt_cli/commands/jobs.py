"""`--jobs N`: processes on this machine, each with the experiment, that take plain runs for the outer loop.

They are started when the first run is begun, take one thread each, and end with this process, however it ends. Signals
are for this process alone: it ends them. If one of them is killed the outer loop goes on without them, and says so.
"""

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.resource_tracker import ensure_running
from types import TracebackType
from typing import Any

import torch

from hyperopt_cli.instantiate import Experiment, build
from hyperopt_cli.outer.ahead import Outcome
from hyperopt_cli.problem import Hyper
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.stopping import may_stop

NOT_FOR_THEM = {signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
LOOKS_EVERY_S, LAST_WAIT_S = 0.1, 5.0

_experiment: Experiment | None = None  # of one of the processes


class Jobs:
    """A context in which `num` processes take plain runs.

    Args:
        num: how many at the same time.
        recipe: of the experiment.
        allow_import: as given to `build`.
    """

    def __init__(self, num: int, recipe: Recipe, allow_import: Sequence[str]) -> None:
        self._pool = ProcessPoolExecutor(num, get_context("spawn"), start, (recipe, tuple(allow_import), os.getpid()))
        self._waiting: list[Future[bytes]] = []

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # there is nothing that they keep
        for process in processes:
            process.join(timeout=LAST_WAIT_S)

    def begin(self, seed: int, hyper: Hyper) -> Future[bytes]:
        """Begins the run of a seed at lambda, or has it wait for a process that is free."""
        ensure_running()  # it changes the mask itself
        before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_THEM)  # which a process that is begun now inherits
        try:
            self._waiting.append(self._pool.submit(take, seed, _packed(hyper)))
        except BrokenProcessPool as broken:
            failed: Future[bytes] = Future()
            failed.set_exception(broken)
            self._waiting.append(failed)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._waiting[-1]

    def outcome(self, future: Future[bytes], beat: Callable[[], None]) -> Outcome | None:
        """Waits for a run that was begun, and calls `beat` several times a second meanwhile.

        Returns:
            How it ended; None where its process has ended, and no other run will be taken.

        Raises:
            Stopped: the run was asked to end meanwhile.
        """
        while True:
            may_stop()
            beat()
            try:
                packed = future.result(timeout=LOOKS_EVERY_S)
            except StillRunning:
                continue
            except BrokenProcessPool:
                may_stop()  # a signal to all processes has reached that one first
                return None
            outcome = torch.load(io.BytesIO(packed), weights_only=False)
            assert isinstance(outcome, Outcome)
            return outcome

    def drop(self) -> None:
        """Drops the runs that still wait for a process."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()


def _packed(tree: Any) -> bytes:
    """Returns a value as bytes, in which tensors are copied: by themselves they would be sent as shared memory."""
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


def start(recipe: Recipe, allow_import: Sequence[str], parent: int) -> None:
    """Makes the experiment of this process, which ends when its parent has ended."""
    global _experiment

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
    _experiment = build(recipe, allow_import)


def take(seed: int, hyper: bytes) -> bytes:
    """Takes a plain run in one of the processes, and returns its packed outcome."""
    assert _experiment is not None
    return _packed(Outcome.of(_experiment.problem(seed), torch.load(io.BytesIO(hyper), weights_only=False)))
