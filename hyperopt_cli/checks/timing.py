"""Engines in turns over a few steps of a run: the medians tell which is the quickest.

The first turn is the warm-up, and whoever is hopeless in it takes part no longer. Directions in w are random, those in
lambda are the run's own.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from hyperopt_cli.checks.examination import reason_of
from hyperopt_cli.checks.setting import Setting
from hyperopt_cli.checks.symmetry import directions
from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss, Loss
from hyperopt_cli.engines.base import Engine
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.stopping import stoppable

HOPELESS = 3.0  # times the time of the quickest


class Times(NamedTuple):
    """Seconds that K columns of a step took, by engine; and why some could not be taken."""

    step_s: dict[str, float]
    disqualified: dict[str, str]


def right_everywhere(right: Mapping[str, Engine], names: Sequence[str], loss: Loss) -> dict[str, Engine]:
    """Returns the engines that are right on all processes which sum over their chunks: they time the same ones.

    Args:
        right: those that are right here, by name.
        names: of all candidates, the same on all processes.
        loss: of step 0.
    """
    across = loss.across if isinstance(loss, ChunkedLoss) else None
    if across is None:
        return dict(right)
    num_wrong = across.summed(torch.tensor([float(name not in right) for name in names]))
    return {name: right[name] for name, num in zip(names, num_wrong.tolist(), strict=True) if num == 0}


def timed(
    engines: Mapping[str, Engine], setting: Setting, loss_at: Callable[[int], Loss], steps: Sequence[int]
) -> Times:
    """Times K columns of each of `steps`, by every engine.

    Args:
        engines: by name.
        setting: step 0 of the run; of other steps the loss is taken.
        loss_at: t -> the loss of step t.
        steps: one for each turn, the first for the warm-up.
    """
    w_dot = directions(setting.params, setting.num_columns)
    times_s: dict[str, list[float]] = {}
    lost: dict[str, str] = {}
    running = list(engines)
    for turn, t in enumerate(steps):
        here = setting._replace(loss=loss_at(t))
        for name in stoppable(running):
            try:
                step_s = _clocked(engines[name], here, w_dot)
                times_s.setdefault(name, []).append(_agreed(here.loss, step_s))
            except (UsageError, RuntimeError) as error:
                lost[name] = reason_of(error)
        running = [name for name in running if name not in lost]
        if turn == 0 and running:
            best = min(times_s[name][0] for name in running)
            running = [name for name in running if times_s[name][0] <= HOPELESS * best]
    return Times(
        {name: statistics.median(each[1:] or each) for name, each in times_s.items() if name not in lost}, lost
    )


def _clocked(engine: Engine, setting: Setting, w_dot: Params) -> float:
    """Seconds of all K columns; the device has finished when they end."""
    device = next(iter(w_dot.values())).device
    _wait(device)
    began = time.perf_counter()
    setting.tangents(engine, w_dot, setting.hyper_dot)
    _wait(device)
    return time.perf_counter() - began


def _agreed(loss: Loss, step_s: float) -> float:
    """Returns the seconds that count: processes whose engines sum over all their chunks go on with the same engines."""
    across = loss.across if isinstance(loss, ChunkedLoss) else None
    return step_s if across is None else across.from_lead(step_s)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
