"""Calls that time a part of themselves: steps of a run, and what they are measured against."""

import time
from collections.abc import Callable
from functools import partial

import torch

from hyperopt_cli.bench.measuring import OwnTime
from hyperopt_cli.bench.problems import Workload
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.errors import UsageError
from hyperopt_cli.memory import available_bytes
from hyperopt_cli.modes import Measurements, Mode
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.planning.probe import synchronize

SHARE_OF_FREE = 0.8


def mean_time(call: Callable[[], object], times: int, device: torch.device) -> OwnTime:
    """Returns the mean seconds of a call over `times` calls, after one that is not timed."""
    call()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return OwnTime((time.perf_counter() - began) / times, None)


def gradients(workload: Workload, times: int, device: torch.device) -> OwnTime:
    """Returns the mean seconds of the gradient at w_0, over `times` of them."""
    problem, hyper = workload
    batch, params = problem.batch(0), problem.initial(hyper)
    return mean_time(lambda: gradient(lambda w, at: problem.training_loss(w, at, batch), params, {}), times, device)


def matrix_products(edge: int, dtype: torch.dtype, times: int, device: torch.device) -> Callable[[], OwnTime]:
    """Returns a function that times products of two random square matrices, written into a third that is reused.

    Args:
        edge: rows and columns of each matrix.
        dtype: the dtype of the matrices.
        times: how many products one mean_time takes the mean of.
        device: where the matrices lie.

    Returns:
        A function without arguments that returns a `OwnTime`: the mean seconds of one product, and no result.
    """
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    into = torch.empty_like(a)
    return partial(mean_time, lambda: torch.mm(a, b, out=into), times, device)


def steps_but_the_first(
    mode: Mode, workload: Workload, device: torch.device, needs_bytes: float = 0.0, known: Measurements | None = None
) -> OwnTime:
    """Returns the mean seconds of a run's steps without the first, none of them examined, and its hypergradient.

    Args:
        mode: a mode that goes over the run once.
        workload: a run of at least two steps.
        device: where it computes.
        needs_bytes: memory that it is expected to take, in bytes.
        known: what was measured of it before, such as what is compiled; None for nothing.

    Raises:
        UsageError: it would take more than `SHARE_OF_FREE` of the memory that is free.
    """
    free = available_bytes(device)
    if needs_bytes > SHARE_OF_FREE * free:
        raise UsageError(f"would take some {needs_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
    ends: list[float] = []

    def on_step(phase: str, done: int, steps: int) -> None:
        if done in (1, steps):
            synchronize(device)
            ends.append(time.perf_counter())

    problem, hyper = workload.problem, {name: value.detach() for name, value in workload.hyper.items()}
    with surroundings(problem.precision):
        account = Account(problem.steps, Dynamics.of(problem, hyper).like, on_step)
        account.examines = False  # a few steps of a run are; of these few it would be all
        result = mode.differentiate(problem, hyper, account, known or Measurements())
    return OwnTime((ends[-1] - ends[0]) / (problem.steps - 1), result.grad)
