"""The outer loop: hypergradients, and the steps that they make in raw coordinates.

    raw_{n+1} = project(raw_n - step(dE/draw)),      dE/draw = dE/dnatural dnatural/draw

Where a step leads to a run that diverges, or whose hypergradient is noise (`noise.py`), it is halved, five times at the
most. A generator of what was measured: it neither prints nor writes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.callback import Callback
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.errors import NoiseError, NonFiniteError, ReversalError, Stopped
from hyperopt_cli.keeper import Keeper, Within
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.modes import Hypergradient, Measurements, Mode
from hyperopt_cli.modes.account import OnStep
from hyperopt_cli.modes.base import mode_from_state_dict
from hyperopt_cli.modes.fitting import in_short, smaller
from hyperopt_cli.modes.plain_run import objective_after
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.outer.noise import CONFIRMED_TO, Ends, judge
from hyperopt_cli.outer.replicas import SUMMED, Replicas
from hyperopt_cli.outer.sign_descent import SignDescent
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.space import Space

# Does the work of this process; the second one saves where the others are to save and the work of this one is done.
Together = Callable[[Callable[[], None], Callable[[], None]], None]

_LOG = logging.getLogger(__name__)

MOST_HALVINGS = 5

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
        schedules: the value of every scheduled name over the horizon, [T] or [T, groups].
        params: w_T of the first replica.
        stats: of all replicas: `wall_s`, `num_steps`, `num_gradients`, `num_hvps` summed, `peak_bytes` their maximum;
            `growth` and `digits` of the hypergradient; only where there is one: `bias`, what biases it, `noise`,
            why it is noise, `num_asked_steps`, plain inner steps that were taken to find that out, `halvings` and
            `halved_for`, what was found where the longer steps had led.
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
    """How the outer loop moves the hyperparameters.

    Attributes:
        optimizer: adam and sgd of `torch.optim`, or sign (`SignDescent`).
        lr: its step in raw coordinates.
        momentum: the momentum of sgd.
        steps: updates; one more hypergradient is measured than updates are made.
        clip_norm: the largest norm of dE/draw, over all hyperparameters together.
        patience: stop after so many outer steps without a new lowest validation loss.
        on_nonfinite: where a step leads to what is not finite, or to noise, `backtrack`, halving it, or `stop`.
        seed: `fixed`, the same training run each time, or `fresh`, other initial weights and batches.
        replicas: seeds that E and its hypergradient are averaged over.
    """

    optimizer: Literal["adam", "sgd", "sign"] = "adam"
    lr: float = 0.05
    momentum: float = 0.0
    steps: int = 10
    clip_norm: float | None = None
    patience: int | None = None
    on_nonfinite: Literal["backtrack", "stop"] = "backtrack"
    seed: Literal["fixed", "fresh"] = "fixed"
    replicas: int = 1

    def rule(self, raw: list[Tensor]) -> torch.optim.Optimizer:
        """Returns an outer optimizer that moves `raw`."""
        if self.optimizer == "adam":
            return torch.optim.Adam(raw, lr=self.lr)
        if self.optimizer == "sgd":
            return torch.optim.SGD(raw, lr=self.lr, momentum=self.momentum)
        return SignDescent(raw, lr=self.lr)

    def smallest_step(self, grad: Hyper) -> Hyper:
        """Returns the step that is left after all halvings that are allowed, with the signs of dE/draw."""
        share = self.lr / 2**MOST_HALVINGS
        if self.optimizer != "sgd":
            return {key: share * g.sign() for key, g in grad.items()}
        return {key: share * _scale(grad, self.clip_norm) * g for key, g in grad.items()}

    def seeds(self, seed: int, outer_step: int) -> list[int]:
        """Returns the seeds of the replicas of one outer step."""
        base = derive(seed, "outer", outer_step) if self.seed == "fresh" else seed
        return [base if replica == 0 else derive(base, "replica", replica) for replica in range(self.replicas)]


def descend(
    problem: Callable[[int], Problem],
    space: Space,
    descent: Descent,
    mode: Mode,
    seed: int = 0,
    *,
    callback: Callback | None = None,
    keeper: Keeper | None = None,
    resume_from: Mapping[str, Any] | None = None,
    measurements: Measurements | None = None,
    ranks: Ranks = ALONE,
    together: Together | None = None,
) -> Iterator[OuterStep]:
    """Yields the outer steps of a descent: it measures and updates `descent.steps` times, and measures once more.

    Args:
        problem: seed -> the training run.
        space: the hyperparameters.
        descent: how to walk.
        mode: how to differentiate.
        seed: of the recipe.
        callback: hears of inner steps, of steps that are halved, of a mode that is made smaller because memory was
            lacking, and of a run that is begun again because what was saved of it could not be reversed.
        keeper: is asked after each step, inner or outer, whether to save what another process can go on from; the state
            has `n`, how many outer steps are measured, and `progress`, inner steps of the next one.
        resume_from: what it saved, with the mode that was in use.
        measurements: of earlier hypergradients of this run; what is measured now is added.
        ranks: the processes that descend together, each of them with the same bits; several need the next.
        together: does the work of this process for an outer step, and waits for others that share it.

    Raises:
        NoMemoryError: memory was lacking, and the mode cannot do with less.
        NonFiniteError: the run diverged, and did so after five halved steps too, or at
            once; what was yielded stays good.
        NoiseError: likewise, of a hypergradient that is noise; the last that was measured is yielded first, and its
            stats say so.
    """
    measurements = Measurements() if measurements is None else measurements
    walk = _Walk(space, descent, mode, seed, callback or Callback(), keeper, measurements, ranks, together)
    if resume_from is not None:
        walk.load_state_dict(resume_from)
    while walk.goes_on:
        walk.update()
        measured = None
        while measured is None:
            lacking = None
            try:
                measured = walk.measured(problem)
            except NonFiniteError as error:
                walk.halve(error)
            except Stopped:
                walk.save_the_rest()
                raise
            except Exception as error:
                if not is_lacking(error) or ranks.divides("batch"):  # of which the others know nothing
                    raise
                lacking = in_short(error)
            if lacking is not None:  # not above: as long as the error is there, it holds what took the memory
                walk.make_mode_smaller(problem, lacking)
        yield measured
        if "noise" in measured.stats:
            raise NoiseError(len(measured.inner_loss), measured.stats["noise"])
        walk.save_if_due()


class _Walk:
    """The state of the outer loop, and the moves that change it.

    Attributes:
        n: how many outer steps are measured.
        raw: where the next one is measured, once `update` has been made.
    """

    def __init__(
        self,
        space: Space,
        descent: Descent,
        mode: Mode,
        seed: int,
        callback: Callback,
        keeper: Keeper | None,
        measurements: Measurements,
        ranks: Ranks,
        together: Together | None,
    ) -> None:
        self._space, self._descent, self._mode, self._seed = space, descent, mode, seed
        self._callback = callback
        self._keeper = None if keeper is None else Within(keeper, self._around)
        self._in_ranks, self._measurements = together, measurements
        self.n = 0
        self.raw = {key: value.clone() for key, value in space.initial().items()}
        self._rule = descent.rule(list(self.raw.values()))
        self._good: Hyper = {}  # the last raw values that were measured
        self._grad: Hyper | None = None  # there, as long as the update is not made
        self._best, self._best_step, self._halvings = float("inf"), 0, 0
        self._halved_for: list[str] = []
        self._asked_steps, self._confirmed = 0, 0.0  # of this outer step; up to which growth, by all before
        self._ranks = ranks
        self._replicas = Replicas(ranks)
        self._last_saved = 0, 0  # outer steps, and runs of the next one

    @property
    def goes_on(self) -> bool:
        """Whether another outer step is to be measured."""
        patience, since = self._descent.patience, self.n - 1 - self._best_step
        return self.n <= self._descent.steps and (self.n == 0 or patience is None or since < patience)

    def update(self) -> None:
        """Makes the update that is due, if any: it moves `raw` to where the next outer step is measured."""
        if self._grad is None:
            return
        self._good = {key: value.clone() for key, value in self.raw.items()}
        _update(self._rule, self.raw, self._grad, self._descent.clip_norm)
        self._grad, self._halvings, self._halved_for, self._asked_steps = None, 0, [], 0
        self._project()

    def halve(self, error: NonFiniteError) -> None:
        """Moves half the way back to the last point where the run was good.

        Raises:
            NonFiniteError: this is `error`, if backtracking is off or was done often enough, or nothing was good yet.
        """
        if not self._may_halve:
            raise error
        self._halvings += 1
        self._halved_for.append(str(error))
        self._replicas.clear()
        for key, value in self.raw.items():
            value.copy_((value + self._good[key]) / 2)
        self._project()
        what = "" if isinstance(error, NoiseError) else f"{error}; "  # noise is in the log, which is told too
        self._say(f"{what}its step is halved ({self._halvings} of {MOST_HALVINGS})")

    @property
    def _may_halve(self) -> bool:
        return self._descent.on_nonfinite == "backtrack" and bool(self._good) and self._halvings < MOST_HALVINGS

    def _say(self, text: str) -> None:
        self._callback.on_message(f"outer step {self.n}: {text}")

    def make_mode_smaller(self, problem: Callable[[int], Problem], lacking: str) -> None:
        """Takes a mode that needs less memory, for the hypergradient that is begun again and those after it.

        Raises:
            NoMemoryError: the mode can't do with less.
        """
        self._replicas.begin_again()
        seed = self._descent.seeds(self._seed, self.n)[0]
        hyper, ranks = self._space.natural(self.raw), self._ranks.of_one_run
        self._mode, message = smaller(self._mode, problem(seed), hyper, lacking, self._measurements, ranks)
        self._say(message)

    def measured(self, problem: Callable[[int], Problem]) -> OuterStep:
        """Measures the next outer step; if its stats say that it is noise, it is the last one.

        Raises:
            NonFiniteError: the run is not finite, or its hypergradient is noise and the step can be halved.
        """
        raw = {key: value.clone() for key, value in self.raw.items()}  # the next update moves the original in place
        hyper, seeds = self._space.natural(raw), self._descent.seeds(self._seed, self.n)

        def on_step(replica: int) -> OnStep:
            return partial(self._callback.on_inner_step, self.n, replica)

        def begun_again(error: ReversalError) -> None:
            self._callback.on_message(f"outer step {self.n} starts again without its checkpoint: {error}")

        runs = self._replicas.hypergradients(
            problem, seeds, hyper, self._mode, self._measurements, self._keeper, self._together, on_step, begun_again
        )
        grad = {key: torch.stack([run.grad[key] for run in runs]).mean(dim=0) for key in hyper}
        step = step_of(self._space, self.n, raw, hyper, grad, runs)
        step.stats.update({"halvings": self._halvings, "halved_for": self._halved_for} if self._halvings else {})
        if all("growth" in run.stats for run in runs):
            step.stats.update(self._judged(step, runs, problem, seeds))
        self._replicas.clear()
        if "noise" in step.stats:
            if self._ranks.is_lead:
                _LOG.warning("outer step %d: the hypergradient is noise: %s", self.n, step.stats["noise"])
            if self._may_halve:
                raise NoiseError(len(step.inner_loss), step.stats["noise"])
            return step
        if step.validation_loss < self._best:
            self._best, self._best_step = step.validation_loss, self.n
        self.n, self._grad = self.n + 1, step.raw_hypergradient
        return step

    def _judged(
        self,
        step: OuterStep,
        runs: list[Hypergradient],
        problem: Callable[[int], Problem],
        seeds: list[int],
    ) -> dict[str, Any]:
        """Returns the stats that say how many digits the hypergradient has, and whether it is noise."""

        def objective(raw: Hyper) -> float:
            hyper, total = self._space.natural(raw), 0.0
            for replica, seed in enumerate(seeds):

                def on_step(phase: str, done: int, steps: int, replica: int = replica) -> None:
                    self._callback.on_inner_step(self.n, replica, "digits", done, steps)

                run = problem(seed)
                total += objective_after(run, hyper, on_step) / len(seeds)
                self._asked_steps += run.steps
            return float(self._ranks.from_lead(total))

        raw, grad = step.raw_hyperparameters, step.raw_hypergradient
        ends = Ends.of(raw, grad, self._descent.smallest_step(grad), self._space.project)
        judgement = judge([run.stats for run in runs], step.validation_loss, ends, objective, self._confirmed)
        if judgement.num_asked and judgement.noise is None:
            self._confirmed = CONFIRMED_TO * judgement.growth
        stats: dict[str, Any] = {"growth": judgement.growth, "digits": judgement.digits}
        stats |= {} if judgement.noise is None else {"noise": judgement.noise}
        return stats | ({"num_asked_steps": self._asked_steps} if self._asked_steps else {})

    def _around(self, run: dict[str, Any] | None) -> dict[str, Any]:
        """Returns the state of the descent, with that of the run that is under way, and notes that it is saved."""
        self._last_saved = self.n, self._replicas.num_done
        return {**self.state_dict(), **self._replicas.state_dict(run)}

    def _save(self) -> None:
        """Saves the state at a time when this process is in the middle of no training run."""
        assert self._keeper is not None
        self._keeper.keeper.save(self._around(None))

    def _together(self, work: Callable[[], None]) -> None:
        work() if self._in_ranks is None else self._in_ranks(work, self._save)

    def save_the_rest(self) -> None:
        """Saves what was measured since the last time, before the run ends inside of a hypergradient."""
        if self._keeper is not None and (self.n, self._replicas.num_done) > self._last_saved:
            self._save()

    def save_if_due(self) -> None:
        """Saves after an outer step if that is due; the last one is always saved, so that a run can be made longer."""
        if self._keeper is not None and (self._keeper.due() or not self.goes_on):
            self._save()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the descent, without the runs of the next outer step."""
        return {
            "n": self.n,
            "mode": self._mode.state_dict(),
            "raw": self.raw,
            "rule": self._rule.state_dict(),
            "good": self._good,
            "grad": self._grad,
            "best": self._best,
            "best_step": self._best_step,
            "halvings": self._halvings,
            "halved_for": self._halved_for,
            "asked_steps": self._asked_steps,
            "confirmed": self._confirmed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state that was saved, and goes on from there."""
        self.n, self._good, self._grad, self._halvings = (state[key] for key in ("n", "good", "grad", "halvings"))
        self._mode = mode_from_state_dict(state["mode"])
        self._best, self._best_step = state["best"], state["best_step"]
        self._halved_for = list(state.get("halved_for", ()))
        self._asked_steps, self._confirmed = state.get("asked_steps", 0), state.get("confirmed", 0.0)
        self._replicas.load_state_dict(state)
        self._last_saved = self.n, self._replicas.num_done
        for key, value in self.raw.items():
            value.copy_(state["raw"][key])
        self._rule.load_state_dict(state["rule"])

    def _project(self) -> None:
        for key, value in self._space.project(self.raw).items():
            self.raw[key].copy_(value)


def step_of(space: Space, n: int, raw: Hyper, hyper: Hyper, grad: Hyper, runs: list[Hypergradient]) -> OuterStep:
    """Returns outer step `n`, in which E and the training loss are means over its runs.

    Args:
        space: the hyperparameters.
        n: how many updates came before.
        raw: the point where it was measured, in raw coordinates.
        hyper: the same point in natural values.
        grad: dE/dnatural, the mean over the runs.
        runs: the hypergradients of the replicas; w_T and the inner loss are those of the first.
    """
    first = runs[0]
    losses = [_last_tenth(run.stats["inner_loss"].to(first.value.device)) for run in runs]
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


def _last_tenth(inner_loss: Tensor) -> float:
    return float(inner_loss[-max(1, len(inner_loss) // 10) :].mean())


def _added(runs: list[Hypergradient]) -> dict[str, Any]:
    summed = {key: sum(run.stats[key] for run in runs) for key in SUMMED}
    alike: dict[str, Any] = {key: runs[-1].stats[key] for key in TOLD if key in runs[-1].stats}  # alike in all of them
    return {**summed, "peak_bytes": max(run.stats["peak_bytes"] for run in runs), **alike}


def _update(rule: torch.optim.Optimizer, raw: Hyper, grad: Hyper, clip_norm: float | None) -> None:
    """Takes one step of the outer optimizer, on a hypergradient that is clipped by its norm."""
    scale = _scale(grad, clip_norm)
    for key, value in raw.items():
        value.grad = grad[key] * scale
    rule.step()


def _scale(grad: Hyper, clip_norm: float | None) -> float:
    """Returns the factor that clips a hypergradient by its norm, over all hyperparameters together."""
    norm = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grad.values()])))
    return 1.0 if clip_norm is None or norm <= clip_norm else clip_norm / norm
