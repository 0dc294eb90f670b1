"""The outer loop: hypergradients, and the steps that they make in raw coordinates.

    raw_{n+1} = project(raw_n - step(dE/draw)),      dE/draw = dE/dnatural dnatural/draw

A generator of what was measured: it neither prints nor writes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.data.seeds import derive
from hyperopt_cli.modes import Hypergradient, Mode, hypergradient
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.sign_descent import SignDescent
from hyperopt_cli.space import Space

# Called after each inner step: outer step, replica, phase, steps done, steps in the phase.
OnInnerStep = Callable[[int, int, str, int, int], None]


TOLD = (
    "bias",
    "mode",
    "plan",
    "engine",
    "engine_why",
    "compiled_why",
    "factors",
)  # of a mode's stats what is reported where it is there


class OuterStep(NamedTuple):
    """What was measured before update `outer_step`; 0 is the start.

    Attributes:
        outer_step: n.
        validation_loss: E, the mean over the replicas.
        training_loss: the mean inner loss over the last tenth of the horizon.
        hyperparameters: natural values.
        hypergradient: dE/dnatural.
        raw_hyperparameters: where the outer optimizer stands.
        raw_hypergradient: dE/draw, before clipping.
        inner_loss: L at every step, [T], of the first replica.
        schedules: every scheduled name over the horizon, [T] or [T, groups].
        params: w_T of the first replica.
        stats: of all replicas: `wall_s`, `num_steps`, `num_gradients`, `num_hvps` summed, `peak_bytes` their maximum;
            `bias`, what biases the hypergradient, only where it is not exact.
    """

    outer_step: int
    validation_loss: float
    training_loss: float
    hyperparameters: Hyper
    hypergradient: Hyper
    raw_hyperparameters: Hyper
    raw_hypergradient: Hyper
    inner_loss: Tensor
    schedules: dict[str, Tensor]
    params: Params
    stats: dict[str, Any]


@dataclass(frozen=True)
class Descent:
    """How the outer loop walks.

    Attributes:
        optimizer: adam and sgd of `torch.optim`, or sign (`SignDescent`).
        lr: its step in raw coordinates.
        momentum: of sgd.
        steps: updates; one more hypergradient is measured than updates are made.
        clip_norm: the largest norm of dE/draw, over all hyperparameters together.
        patience: stop after so many outer steps without a new lowest validation loss.
        seed: `fixed`, the same training run each time, or `fresh`, other initial weights and batches.
        replicas: seeds that E and its hypergradient are averaged over.
    """

    optimizer: Literal["adam", "sgd", "sign"] = "adam"
    lr: float = 0.05
    momentum: float = 0.0
    steps: int = 10
    clip_norm: float | None = None
    patience: int | None = None
    seed: Literal["fixed", "fresh"] = "fixed"
    replicas: int = 1

    def rule(self, raw: list[Tensor]) -> torch.optim.Optimizer:
        """The outer optimizer over `raw`."""
        if self.optimizer == "adam":
            return torch.optim.Adam(raw, lr=self.lr)
        if self.optimizer == "sgd":
            return torch.optim.SGD(raw, lr=self.lr, momentum=self.momentum)
        return SignDescent(raw, lr=self.lr)

    def seeds(self, seed: int, outer_step: int) -> list[int]:
        """The seeds of the replicas of one outer step."""
        base = derive(seed, "outer", outer_step) if self.seed == "fresh" else seed
        return [base if replica == 0 else derive(base, "replica", replica) for replica in range(self.replicas)]


def descend(
    problem: Callable[[int], Problem],
    space: Space,
    descent: Descent,
    mode: Mode,
    seed: int = 0,
    on_inner_step: OnInnerStep | None = None,
) -> Iterator[OuterStep]:
    """Measures and steps, `descent.steps` times, and measures where it arrived.

    Args:
        problem: seed -> the training run.
        space: the hyperparameters.
        descent: how to walk.
        mode: how to differentiate.
        seed: of the recipe.
        on_inner_step: watches the inner loop.

    Raises:
        NonFiniteError: the run diverged; what was yielded before stays good.
    """
    raw = {key: value.clone() for key, value in space.initial().items()}
    rule = descent.rule(list(raw.values()))
    best, best_step = float("inf"), 0
    for n in range(descent.steps + 1):
        step = _measure(problem, space, mode, raw, n, descent.seeds(seed, n), on_inner_step)
        yield step
        if step.validation_loss < best:
            best, best_step = step.validation_loss, n
        if n == descent.steps or (descent.patience is not None and n - best_step >= descent.patience):
            return
        _update(rule, raw, step.raw_hypergradient, descent.clip_norm)
        for key, value in space.project(raw).items():
            raw[key].copy_(value)


def _measure(
    problem: Callable[[int], Problem],
    space: Space,
    mode: Mode,
    raw: Hyper,
    n: int,
    seeds: list[int],
    on_inner_step: OnInnerStep | None,
) -> OuterStep:
    raw = {key: value.clone() for key, value in raw.items()}  # the next update moves the original in place
    hyper = space.natural(raw)
    runs = []
    for replica, seed in enumerate(seeds):
        on_step = None if on_inner_step is None else _bound(on_inner_step, n, replica)
        runs.append(hypergradient(problem(seed), hyper, mode, on_step=on_step))
    grad = {key: torch.stack([run.grad[key] for run in runs]).mean(dim=0) for key in hyper}
    first = runs[0]
    losses = [_last_tenth(run.stats["inner_loss"]) for run in runs]
    return OuterStep(
        outer_step=n,
        validation_loss=float(torch.stack([run.value for run in runs]).mean()),
        training_loss=sum(losses) / len(losses),
        hyperparameters=hyper,
        hypergradient=grad,
        raw_hyperparameters=raw,
        raw_hypergradient=space.pull_back(raw, grad),
        inner_loss=first.stats["inner_loss"].cpu(),
        schedules=space.courses(hyper),
        params=first.params,
        stats=_added(runs),
    )


def _bound(on_inner_step: OnInnerStep, n: int, replica: int) -> Callable[[str, int, int], None]:
    return lambda phase, done, steps: on_inner_step(n, replica, phase, done, steps)


def _last_tenth(inner_loss: Tensor) -> float:
    return float(inner_loss[-max(1, len(inner_loss) // 10) :].mean())


def _added(runs: list[Hypergradient]) -> dict[str, Any]:
    summed = {key: sum(run.stats[key] for run in runs) for key in ("wall_s", "num_steps", "num_gradients", "num_hvps")}
    told: dict[str, Any] = {key: runs[0].stats[key] for key in TOLD if key in runs[0].stats}
    return {**summed, "peak_bytes": max(run.stats["peak_bytes"] for run in runs), **told}


def _update(rule: torch.optim.Optimizer, raw: Hyper, grad: Hyper, clip_norm: float | None) -> None:
    """One step of the outer optimizer, on a hypergradient clipped by its norm."""
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in grad.values()]))
    scale = 1.0 if clip_norm is None or norm <= clip_norm else clip_norm / float(norm)
    for key, value in raw.items():
        value.grad = grad[key] * scale
    rule.step()
