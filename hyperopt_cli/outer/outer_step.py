"""What the outer loop measures: outer steps, which a run's record consists of, and trials beside them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.modes import Hypergradient
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.outer.replicas import SUMMED
from hyperopt_cli.problem import Hyper
from hyperopt_cli.space import Space

TOLD = (
    "bias",
    "checks",
    "mode",
    "plan",
    "engine",
    "engine_why",
    "compiled_why",
    "factors",
)  # of a mode's stats what is reported where it is there


class OuterStep(NamedTuple):
    """What was measured at a point that the outer loop stood at; 0 is the recipe's start.

    Attributes:
        outer_step: n.
        validation_loss: E, the mean over the replicas; infinite where the run of the start diverged.
        training_loss: the mean inner loss over the last tenth of the horizon.
        hyperparameters: natural values.
        hypergradient: dE/dnatural; None at a start from which the descent does not begin.
        raw_hyperparameters: where the outer loop stands.
        raw_hypergradient: dE/draw, before clipping; None as above.
        inner_loss: L at every step, [T], of the first replica; empty where its run diverged.
        schedules: the value of every scheduled name over the horizon, [T] or [T, groups].
        params: w_T of the first replica; empty where its run diverged.
        stats: of all replicas: `wall_s`, `num_steps`, `num_gradients`, `num_hvps` summed, `peak_bytes` their maximum;
            `price` of the run so far in plain training runs; `growth` and `digits` of the hypergradient; only where
            there is one: `bias`, what biases it, `noise`, why it is noise, `num_asked_steps`, plain inner steps that
            were taken to find that out, `halvings` and `halved_for`, what was found where the longer steps had led.
            Whoever writes the step down adds `validation_accuracy`, of the first replica, where there are classes.
    """

    outer_step: int
    validation_loss: float
    training_loss: float
    hyperparameters: Hyper
    hypergradient: Hyper | None
    raw_hyperparameters: Hyper
    raw_hypergradient: Hyper | None
    inner_loss: Tensor
    schedules: dict[str, Tensor]
    params: Params
    stats: dict[str, Any]


class Trial(NamedTuple):
    """A plain training run beside the outer steps: of a scan, of a step that was refused, of a search.

    Attributes:
        number: from 0.
        outer_step: of the outer steps, how many were measured before.
        kind: what it was for.
        validation_loss: E, the mean over the seeds; infinite where the run diverged.
        hyperparameters: natural values.
        raw_hyperparameters: the same in raw coordinates.
        price: what it cost, in plain training runs.
        price_so_far: of the whole run.
        steps: the horizon.
        seeds: of its training runs.
        refused: whether it was a step that was not taken.
        why: why its run diverged; None if it did not.
        params: w_T of the first seed; empty where its run diverged.
        wall_s: seconds.
    """

    number: int
    outer_step: int
    kind: str
    validation_loss: float
    hyperparameters: Hyper
    raw_hyperparameters: Hyper
    price: float
    price_so_far: float
    steps: int
    seeds: list[int]
    refused: bool
    why: str | None
    params: Params
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """Returns its line of trials.jsonl: a loss of null where the run diverged, and then `why`."""
        line = {"trial": self.number, **self._asdict()}
        for key in ("number", "params", *(["why"] if self.why is None else [])):
            del line[key]
        return line | ({"validation_loss": None} if self.validation_loss == float("inf") else {})


def training_loss(run: Hypergradient) -> float:
    """Returns the mean inner loss over the last tenth of the horizon of a training run."""
    loss: Tensor = run.stats["inner_loss"]
    return float(loss[-max(1, len(loss) // 10) :].to(run.value.device).mean())


def step_of(space: Space, n: int, raw: Hyper, hyper: Hyper, grad: Hyper | None, runs: list[Hypergradient]) -> OuterStep:
    """Returns outer step `n`, in which E and the training loss are means over its runs.

    Args:
        space: the hyperparameters.
        n: how many points were measured before.
        raw: the point where it was measured, in raw coordinates.
        hyper: the same point in natural values.
        grad: dE/dnatural, the mean over the runs; None where it was not taken.
        runs: of the replicas; w_T and the inner loss are those of the first. None at all where they diverged.
    """
    num, stats = len(runs), {key: sum(run.stats[key] for run in runs) for key in SUMMED}
    stats["peak_bytes"] = max((run.stats["peak_bytes"] for run in runs), default=0)
    stats |= {key: runs[-1].stats[key] for key in TOLD if runs and key in runs[-1].stats}  # alike in all of them
    return OuterStep(
        outer_step=n,
        validation_loss=float(torch.stack([run.value for run in runs]).mean()) if num else float("inf"),
        training_loss=sum(map(training_loss, runs)) / num if num else float("inf"),
        hyperparameters=hyper,
        hypergradient=grad,
        raw_hyperparameters=raw,
        raw_hypergradient=None if grad is None else space.pull_back(raw, grad),
        inner_loss=runs[0].stats["inner_loss"].cpu() if num else torch.empty(0),
        schedules=space.courses(hyper),
        params=runs[0].params if num else {},
        stats=stats,
    )
