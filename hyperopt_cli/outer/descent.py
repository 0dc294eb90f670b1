"""The outer loop: it takes the training runs that a method asks for, and yields what was measured.

    method --points--> training runs --E, dE/dpoint--> method        (`method.py`)

A generator of outer steps, which are points with a hypergradient, and of trials, which are plain runs beside them: it
neither prints nor writes. What a run has cost is counted in plain training runs (`price`), and decides when a budget is
used up: gradients and products with the Hessian are counted, never seconds, so that it is the same on every machine.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hyperopt_cli.callback import Callback
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.errors import HopelessError, NoiseError, NonFiniteError, ReversalError, Stopped, UsageError
from hyperopt_cli.keeper import Keeper, Within
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.modes import Hypergradient, Measurements, Mode
from hyperopt_cli.modes.account import OnStep
from hyperopt_cli.modes.base import mode_from_state_dict
from hyperopt_cli.modes.fitting import in_short, smaller
from hyperopt_cli.modes.plain_run import check_differentiable, objective_after
from hyperopt_cli.outer.ahead import Ahead, Pool
from hyperopt_cli.outer.median_rule import MedianRule
from hyperopt_cli.outer.method import Answer, Ask, Method
from hyperopt_cli.outer.noise import CONFIRMED_TO, Ends, judge
from hyperopt_cli.outer.outer_step import OuterStep, Trial, step_of
from hyperopt_cli.outer.replicas import Replicas, one_thread
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.registry import OUTER, load
from hyperopt_cli.space import Space

# Does the work of this process; the second one saves where the others are to save and the work of this one is done.
Together = Callable[[Callable[[], None], Callable[[], None]], None]

SAME = 1e-6  # how far apart points of a run that is resumed may be: another processor rounds in another way
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Descent:
    """How the outer loop moves the hyperparameters.

    Attributes:
        optimizer: a name in `registry.OUTER`.
        lr: the step of adam, sgd and sign in raw coordinates.
        momentum: of sgd.
        grow: of sign: what a step is multiplied by where the sign stays.
        steps: updates; one more hypergradient is measured than updates are made.
        budget: the price at which the run ends, in plain training runs; None: any.
        clip_norm: of adam, sgd and sign: the largest norm of dE/draw, over all hyperparameters together.
        patience: stop after so many outer steps without a new lowest validation loss.
        on_nonfinite: of adam, sgd and sign: where a step leads to what is not finite, or to noise, `backtrack`, halving
            it, or `stop`.
        seed: `fixed`, the same training run each time, or `fresh`, other initial weights and batches.
        replicas: seeds that E and its hypergradient are averaged over.
        trials: of random and tpe: how many plain runs, that of the start among them; None: until the budget is used up.
        tied: of random and tpe: whether all entries of a hyperparameter move together.
    """

    optimizer: str = "adam"
    lr: float = 0.05
    momentum: float = 0.0
    grow: float = 1.0
    steps: int = 10
    budget: float | None = None
    clip_norm: float | None = None
    patience: int | None = None
    on_nonfinite: Literal["backtrack", "stop"] = "backtrack"
    seed: Literal["fixed", "fresh"] = "fixed"
    replicas: int = 1
    trials: int | None = None
    tied: bool = False

    def method(self) -> Method:
        """Makes the method that `optimizer` names, of those settings that the registry lists for it."""
        entry = OUTER[self.optimizer]
        method: Method = load(entry.path)(**{key: getattr(self, key) for key in entry.settings})
        return method

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
    pool: Pool | None = None,
) -> Iterator[OuterStep | Trial]:
    """Yields what a descent measures, until its steps or its budget are used up or its method has converged.

    Args:
        problem: seed -> the training run.
        space: the hyperparameters.
        descent: how to walk.
        mode: how to differentiate.
        seed: of the recipe.
        callback: hears of inner steps, of steps that are halved, of a mode that is made smaller because memory was
            lacking, and of a run that is begun again because what was saved of it could not be reversed.
        keeper: is asked after each step, inner or outer, whether to save what another process can go on from; the state
            has `n`, how many outer steps are measured, `num_trials`, and `progress`, inner steps since the last one.
        resume_from: what it saved, with the mode that was in use.
        measurements: of earlier hypergradients of this run; what is measured now is added.
        ranks: the processes that descend together, each of them with the same bits; several need the next.
        together: does the work of this process for an outer step, and waits for others that share it.
        pool: other processes, which take the plain runs that the method asks for at once.

    Raises:
        NoMemoryError: memory was lacking, and the mode cannot do with less.
        NonFiniteError: the run diverged, and the method has no other point to go on from; what was yielded stays good.
        NoiseError: likewise, of a hypergradient that is noise; the last that was measured is yielded first, and its
            stats say so.
    """
    measurements = Measurements() if measurements is None else measurements
    walk = _Walk(
        problem, space, descent, mode, seed, callback or Callback(), keeper, measurements, ranks, together, pool
    )
    if resume_from is not None:
        walk.load_state_dict(resume_from)
    yield from walk.measured()


class _Walk:
    """The state of the outer loop, and the moves that change it."""

    def __init__(
        self,
        problem: Callable[[int], Problem],
        space: Space,
        descent: Descent,
        mode: Mode,
        seed: int,
        callback: Callback,
        keeper: Keeper | None,
        measurements: Measurements,
        ranks: Ranks,
        together: Together | None,
        pool: Pool | None,
    ) -> None:
        self._problem, self._space, self._descent, self._mode, self._seed = problem, space, descent, mode, seed
        self._callback, self._ranks, self._in_ranks, self._measurements = callback, ranks, together, measurements
        self._keeper = None if keeper is None else Within(keeper, self._around)
        self._method, first = descent.method(), problem(descent.seeds(seed, 0)[0])
        rates = first.optimizer.rates
        self._terrain = Terrain.of(space, first.steps, self._method.in_units, rates, seed)
        self._steps = first.steps
        self._replicas, self._median, self._ahead = Replicas(ranks), MedianRule(first.steps), Ahead(pool)
        self._n = self._num_trials = self._num_gradients = 0
        self._price = 0.0
        self._told: list[tuple[Tensor, Answer]] = []
        self._start: OuterStep | None = None  # where the descent may not begin: measured without a hypergradient
        self._is_rest = False  # the run under way is a plain one, in place of a hypergradient that has no room
        self._judged: float | None = None  # E at the point that is asked for, by the plain runs before its gradient
        self._best, self._best_step = float("inf"), 0
        self._steps_since, self._asked_steps, self._confirmed = 0, 0, 0.0
        self._last_saved = 0, 0, 0  # outer steps, trials, and runs of the next point

    def measured(self) -> Iterator[OuterStep | Trial]:
        """Yields what is measured from here on."""
        walk = self._method.walk(self._terrain)
        asks, num = next(walk), 0
        while asks:
            answers = []
            new = {at: ask.point for at, ask in enumerate(asks, num) if at >= len(self._told) and ask.kind != "step"}
            seeds = self._descent.seeds(self._seed, self._n)
            self._ahead.begin({at: self._terrain.natural(point) for at, point in new.items()}, seeds)
            for ask in asks:
                if num == len(self._told):
                    if self._is_over(ask):
                        self._ahead.drop()
                        yield from self._closed()
                        return
                    if self._is_over(ask, whole=True):
                        yield from self._with_the_rest(ask)
                        return
                    if self._is_rest:  # the budget was raised: what was begun is no hypergradient
                        self._replicas.clear()
                        self._is_rest = False
                    yield from self._answered(ask)
                point, answer = self._told[num]
                if not torch.allclose(point, ask.point, rtol=SAME, atol=SAME):
                    raise UsageError(
                        "outer: the method asks for other points than those that the run has measured; resume it with "
                        "the recipe and the version that it was begun with, or start another run"
                    )
                answers.append(answer)
                num += 1
            try:
                asks = walk.send(answers)
            except StopIteration:
                asks = []
        yield from self._closed()

    def _closed(self) -> Iterator[OuterStep]:
        """Saves what is not saved yet, and yields the start if the descent never got under way.

        The start is saved as pending, for with a larger budget the descent may begin there.
        """
        if self._keeper is not None and self._measured_so_far > self._last_saved:
            self._save()
        yield from self._start_if_pending()

    def _with_the_rest(self, ask: Ask) -> Iterator[OuterStep | Trial]:
        """Yields a plain run where the budget has no room for its gradient, and ends.

        The state is that of before, so that a run with a larger budget, which takes the gradient, goes on from there.
        """
        if self._keeper is not None and self._measured_so_far > self._last_saved:
            self._save()
        self._is_rest = True
        yield from self._answered(ask._replace(gradient=False), is_told=False)
        yield from self._start_if_pending()

    def _start_if_pending(self) -> Iterator[OuterStep]:
        if self._start is not None:
            step, self._start, self._n = self._start, None, self._n + 1
            yield step

    @property
    def _gradient_price(self) -> float:
        num = sum(knob.initial.numel() for knob in self._space.tuned().values())
        return self._mode.chosen(self._measurements).price(num, self._steps)

    def _asks_on_its_way(self) -> bool:
        """Whether the backward sweep of a single run asks if its gradient is wanted; else plain runs go before."""
        alone = self._descent.replicas == 1 and not self._ranks.divides("replicas")
        return alone and self._mode.chosen(self._measurements).has_backward

    def _is_over(self, ask: Ask, whole: bool = False) -> bool:
        """Whether the steps, the patience or the budget are used up before this point, or before its gradient."""
        descent = self._descent
        if self._judged is not None:  # it is under way, and was decided
            return False
        if self._num_gradients > descent.steps:
            return True
        if descent.patience is not None and self._n and self._n - 1 - self._best_step >= descent.patience:
            return True
        if descent.budget is None:
            return False
        least = 1.0
        if ask.gradient and (whole or not ask.is_gated):
            least = self._gradient_price + (1.0 if ask.is_gated and not self._asks_on_its_way() else 0.0)
        return self._price + descent.replicas * least > descent.budget

    def _answered(self, ask: Ask, is_told: bool = True) -> Iterator[OuterStep | Trial]:
        """Measures a point, yields what there is to write down of it, and keeps the answer."""
        if not self._told and not ask.gradient:
            seeds = self._descent.seeds(self._seed, 0)
            check_differentiable(self._problem(seeds[0]), self._terrain.natural(ask.point))
        if ask.message is not None:
            self._say(ask.message)
        runs: list[Hypergradient] = []
        error: NonFiniteError | None = None
        while not runs and error is None:
            lacking = None
            try:
                runs = self._runs(ask)
            except NonFiniteError as diverged:
                error = diverged
            except Stopped:
                self._save_the_rest()
                raise
            except Exception as failed:
                if not is_lacking(failed) or self._ranks.divides("batch"):  # of which the others know nothing
                    raise
                lacking = in_short(failed)
            if lacking is not None:  # not above: as long as the error is there, it holds what took the memory
                self._make_mode_smaller(ask, lacking)
        if error is not None and not ask.has_fallback:
            yield from self._start_if_pending()
            raise error
        yield from self._taken_in(ask, runs, error, is_told)
        self._replicas.clear()
        self._judged = None
        if is_told and self._keeper is not None and self._keeper.due():
            self._save()

    def _runs(self, ask: Ask) -> list[Hypergradient]:
        """Takes the training runs of a point: plain ones, or hypergradients where these are wanted.

        Where E decides whether the gradient is wanted, a single run with a backward sweep asks on its way; else plain
        runs go before.
        """
        # of several replicas, a part would be compared with the whole
        hopeless = self._median.hopeless if ask.stops_hopeless and self._descent.replicas == 1 else None
        beat = partial(self._callback.on_inner_step, self._n, 0, "forward", 0, self._steps)
        if (taken := self._ahead.runs(len(self._told), hopeless, self._say, beat)) is not None:
            return taken
        on_its_way = self._asks_on_its_way()
        if ask.is_gated and not on_its_way and self._judged is None:
            plain = self._replicas_of(ask, None)
            value = float(torch.stack([run.value for run in plain]).mean())
            if value >= ask.below:
                return plain
            self._judged = value
            self._price += len(plain)
            self._steps_since += sum(run.stats["num_steps"] for run in plain)
            self._replicas.clear()
        if not (ask.is_gated and on_its_way):
            return self._replicas_of(ask, self._mode if ask.gradient else None, None, hopeless)
        (run,) = self._replicas_of(ask, self._mode, lambda value: value < ask.below, hopeless)
        return [run if run.value < ask.below else run._replace(grad={})]

    def _replicas_of(
        self,
        ask: Ask,
        mode: Mode | None,
        wanted: Callable[[float], bool] | None = None,
        hopeless: Callable[[int, Tensor], bool] | None = None,
    ) -> list[Hypergradient]:
        def on_step(replica: int) -> OnStep:
            return partial(self._callback.on_inner_step, self._n, replica)

        def begun_again(error: ReversalError) -> None:
            self._callback.on_message(f"outer step {self._n} starts again without its checkpoint: {error}")

        with nullcontext() if ask.kind == "step" else one_thread():
            return self._replicas.taken(
                self._problem,
                self._descent.seeds(self._seed, self._n),
                self._terrain.natural(ask.point),
                mode,
                self._measurements,
                self._keeper,
                self._together,
                on_step,
                begun_again,
                wanted,
                hopeless,
            )

    def _taken_in(
        self, ask: Ask, runs: list[Hypergradient], error: NonFiniteError | None, is_told: bool
    ) -> Iterator[OuterStep | Trial]:
        """Counts what a point's runs cost, yields the outer step or the trial that they are, and keeps the answer."""
        seeds = self._descent.seeds(self._seed, self._n)
        hyper, raw = self._terrain.natural(ask.point), self._terrain.raw(ask.point)
        has_grad = bool(runs) and bool(runs[0].grad)
        # a step that diverges has done so in the run that judges it
        took_backward = has_grad or (error is not None and ask.gradient and not (ask.is_gated and self._judged is None))
        price = len(seeds) * (self._gradient_price if took_backward else 1.0)
        if isinstance(error, HopelessError):
            price = error.step / self._steps
        elif ask.stops_hopeless and runs:
            self._median.add(runs[0].stats["inner_loss"])
        self._price += price
        grad = {key: torch.stack([run.grad[key] for run in runs]).mean(dim=0) for key in hyper} if has_grad else None
        step = step_of(self._space, self._n, raw, hyper, grad, runs)
        step.stats["price"] = self._price
        if grad is not None:
            yield from self._taken_as_step(ask, step, runs)
            return
        self._told += [(ask.point, Answer(step.validation_loss, None, error))] if is_told else []
        if not OUTER[self._descent.optimizer].compares:  # a step that is halved: the outer step tells of it
            return
        self._num_trials, self._steps_since = self._num_trials + 1, self._steps_since + step.stats["num_steps"]
        if len(self._told) == 1:
            self._start = step
        yield Trial(
            number=self._num_trials - 1,
            outer_step=self._n,
            kind=ask.kind,
            validation_loss=step.validation_loss,
            hyperparameters=hyper,
            raw_hyperparameters=raw,
            price=price,
            price_so_far=self._price,
            steps=self._steps,
            seeds=seeds,
            refused=ask.kind == "step" and not step.validation_loss < ask.below,
            why=None if error is None else str(error),
            params=step.params,
            wall_s=step.stats["wall_s"],
        )
        if ask.kind == "search":
            yield from self._start_if_pending()

    def _taken_as_step(self, ask: Ask, step: OuterStep, runs: list[Hypergradient]) -> Iterator[OuterStep]:
        """Yields the outer step of a point with its hypergradient, and before it the start, if that is pending."""
        if torch.equal(ask.point, self._terrain.start):
            self._start = None
        yield from self._start_if_pending()
        step = step._replace(outer_step=self._n)
        halved = {"halvings": len(ask.halved_for), "halved_for": list(ask.halved_for)}
        step.stats.update(halved if ask.halved_for else {})
        assert step.hypergradient is not None
        vector = self._terrain.pull_back(ask.point, step.hypergradient)
        if all("growth" in run.stats for run in runs):
            step.stats.update(self._trusted(ask, step, vector, runs))
        noise = None
        if "noise" in step.stats:
            if self._ranks.is_lead:
                _LOG.warning("outer step %d: the hypergradient is noise: %s", self._n, step.stats["noise"])
            noise = NoiseError(len(step.inner_loss), step.stats["noise"])
            if ask.has_fallback:
                self._told.append((ask.point, Answer(step.validation_loss, None, noise)))
                return
            yield step
            raise noise
        if step.validation_loss < self._best:
            self._best, self._best_step = step.validation_loss, self._n
        self._told.append((ask.point, Answer(step.validation_loss, vector)))
        self._n, self._num_gradients, self._steps_since = self._n + 1, self._num_gradients + 1, 0
        self._replicas.clear()
        self._judged, self._asked_steps = None, 0
        yield step

    def _trusted(self, ask: Ask, step: OuterStep, vector: Tensor, runs: list[Hypergradient]) -> dict[str, Any]:
        """Returns the stats that say how many digits the hypergradient has, and whether it is noise."""
        smallest = self._method.smallest_step(vector)
        if smallest is None:
            return {
                "growth": max(run.stats["growth"] for run in runs),
                "digits": min(run.stats["digits"] for run in runs),
            }
        seeds = self._descent.seeds(self._seed, self._n)

        def objective(point: Hyper) -> float:
            hyper, total = self._terrain.natural(point["point"]), 0.0
            for replica, seed in enumerate(seeds):

                def on_step(phase: str, done: int, steps: int, replica: int = replica) -> None:
                    self._callback.on_inner_step(self._n, replica, "digits", done, steps)

                run = self._problem(seed)
                total += objective_after(run, hyper, on_step) / len(seeds)
                self._asked_steps += run.steps
                self._price += 1.0
            return float(self._ranks.from_lead(total))

        ends = Ends.of(
            {"point": ask.point},
            {"point": vector},
            {"point": smallest},
            lambda point: {"point": self._terrain.project(point["point"])},
        )
        judgement = judge([run.stats for run in runs], step.validation_loss, ends, objective, self._confirmed)
        if judgement.num_asked and judgement.noise is None:
            self._confirmed = CONFIRMED_TO * judgement.growth
        stats: dict[str, Any] = {"growth": judgement.growth, "digits": judgement.digits, "price": self._price}
        stats |= {} if judgement.noise is None else {"noise": judgement.noise}
        return stats | ({"num_asked_steps": self._asked_steps} if self._asked_steps else {})

    def _say(self, text: str) -> None:
        self._callback.on_message(f"outer step {self._n}: {text}")

    def _make_mode_smaller(self, ask: Ask, lacking: str) -> None:
        """Takes a mode that needs less memory, for the hypergradient that is begun again and those after it.

        Raises:
            NoMemoryError: the mode can't do with less.
        """
        self._replicas.begin_again()
        seed = self._descent.seeds(self._seed, self._n)[0]
        hyper, ranks = self._terrain.natural(ask.point), self._ranks.of_one_run
        self._mode, message = smaller(self._mode, self._problem(seed), hyper, lacking, self._measurements, ranks)
        self._say(message)

    @property
    def _measured_so_far(self) -> tuple[int, int, int]:
        return self._n, self._num_trials, self._replicas.num_done

    def _around(self, run: dict[str, Any] | None) -> dict[str, Any]:
        """Returns the state of the descent, with that of the run that is under way, and notes that it is saved."""
        self._last_saved = self._measured_so_far
        runs = self._replicas.state_dict(run)
        return {**self.state_dict(), **runs, "progress": runs["progress"] + self._steps_since}

    def _save(self) -> None:
        """Saves the state at a time when this process is in the middle of no training run."""
        assert self._keeper is not None
        self._keeper.keeper.save(self._around(None))

    def _together(self, work: Callable[[], None]) -> None:
        work() if self._in_ranks is None else self._in_ranks(work, self._save)

    def _save_the_rest(self) -> None:
        """Saves what was measured since the last time, before the run ends inside of a training run."""
        if self._keeper is not None and self._measured_so_far > self._last_saved:
            self._save()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the descent, without the runs of the next point."""
        return {
            "n": self._n,
            "num_trials": self._num_trials,
            "num_gradients": self._num_gradients,
            "price": self._price,
            "mode": self._mode.state_dict(),
            "told": [[point, told.value, told.grad, told.error and _as_list(told.error)] for point, told in self._told],
            "start": None if self._start is None else self._start._asdict(),
            "judged": self._judged,
            "is_rest": self._is_rest,
            "best": self._best,
            "best_step": self._best_step,
            "steps_since": self._steps_since,
            "asked_steps": self._asked_steps,
            "confirmed": self._confirmed,
            "curves": list(self._median.curves),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state that was saved, and goes on from there."""
        self._n, self._num_trials, self._num_gradients = state["n"], state["num_trials"], state["num_gradients"]
        self._price, self._mode = state["price"], mode_from_state_dict(state["mode"])
        for point, value, grad, of_error in state["told"]:
            error = None
            if of_error is not None:
                is_noise, step, what, text = of_error
                error = NoiseError(step, "") if is_noise else NonFiniteError(step, what)
                error.args = (text,)
            self._told.append((point, Answer(value, grad, error)))
        self._start = None if state["start"] is None else OuterStep(**state["start"])
        self._is_rest, self._judged, self._best, self._best_step = (
            state["is_rest"],
            state["judged"],
            state["best"],
            state["best_step"],
        )
        self._steps_since, self._asked_steps = state["steps_since"], state["asked_steps"]
        self._confirmed, self._median.curves = state["confirmed"], list(state["curves"])
        self._replicas.load_state_dict(state)
        self._last_saved = self._measured_so_far


def _as_list(error: NonFiniteError) -> list[Any]:
    return [isinstance(error, NoiseError), error.step, error.what, str(error)]
