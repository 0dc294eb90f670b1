"""Work done in a new process whose memory the kernel limits, forked from one that has loaded what torch loads late."""

import ctypes
import multiprocessing
import multiprocessing.context
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli import Forward, Reverse, Reversible, hypergradient
from hyperopt_cli.modes.auto import Auto
from hyperopt_cli.optimizers import SGD
from tests.cases import net_problem, scalar

M_MMAP_THRESHOLD = -3

needs_a_limit = pytest.mark.skipif(
    sys.platform != "linux", reason="what a process holds is read from /proc, and glibc is told to keep nothing"
)


def within(num_bytes: int | None, work: Callable[..., Any], *given: Any) -> Any:
    """What `work(*given)` returns or raises, in a process that may take `num_bytes` beside what it has; None: any.

    Args:
        num_bytes: of addresses.
        work: a function of a module.
        given: what can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=warmed()) as pool:
        return pool.submit(_limited, num_bytes, work, *given).result()


def warmed() -> multiprocessing.context.ForkServerContext:
    """What starts processes that are forked from one which has loaded what torch loads late."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warmed"])
    return context


def _limited(num_bytes: int | None, work: Callable[..., Any], *given: Any) -> Any:
    warm()
    if num_bytes is not None:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + num_bytes, resource.RLIM_INFINITY))
    try:
        return work(*given)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@cache
def warm() -> None:
    """Loads what torch loads at the first step."""
    torch.set_num_threads(1)
    problem, hyper = net_problem(SGD(momentum=0.9)), {"lr": scalar(0.01), "momentum": scalar(0.8)}
    for mode in (Forward(), Forward(engine="folded", columns_at_once=1), Reverse(slots=2), Reversible(), Auto()):
        hypergradient(problem, hyper, mode)
