"""What a run has found so far: its start and its best, with what the test split says of them."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hyperopt_cli.errors import HyperoptError, UsageError
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.instantiate.models import state_on_host
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.outer.outer_step import OuterStep, Trial
from hyperopt_cli.run_directory.directory import ACCURACY, SOURCES_CHANGED
from hyperopt_cli.run_directory.result import HeldOut, Point, Result, Score, Values
from hyperopt_cli.run_directory.status import State


class Record:
    """The start and the best so far, with what the test split says of them.

    Attributes:
        sources_changed: from which outer step on other code was run than before, and which of its files had changed.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._start_s = experiment, time.perf_counter()
        self._initial: Point | None = None
        self._initial_score: Score | None = None
        self._start_params: Params | None = None  # as long as the test split is not measured with them
        self._best: Point | None = None
        self._best_params: Params = {}
        self._mode: str | None = None  # what `auto` has chosen
        self._saved_best: str | None = None  # the best that is in a checkpoint
        self.sources_changed: list[dict[str, Any]] = []

    @property
    def has_any(self) -> bool:
        """Whether a training run was measured."""
        return self._initial is not None

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it."""
        return {
            "wall_s": time.perf_counter() - self._start_s,
            "initial": self._initial and asdict(self._initial),
            "initial_score": self._initial_score and asdict(self._initial_score),
            "start_params": self._start_params,
            "best": self._best and asdict(self._best),
            "best_params": self._best_params,
            "mode": self._mode,
            "saved_best": self._saved_best,
            SOURCES_CHANGED: self.sources_changed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what a checkpoint holds, and goes on from there."""
        self._start_s -= state["wall_s"]
        self._initial, self._best = (point and Point(**point) for point in (state["initial"], state["best"]))
        self._initial_score = state["initial_score"] and Score(**state["initial_score"])
        self._best_params = self._here(state["best_params"])
        self._start_params = None if state["start_params"] is None else self._here(state["start_params"])
        self._mode, self._saved_best = state["mode"], state["saved_best"]
        self.sources_changed += state[SOURCES_CHANGED]

    def _here(self, params: Params) -> Params:
        return {name: w.to(self._experiment.device) for name, w in params.items()}

    def files_changed(self) -> list[str]:
        """Returns all files of the user's code that differ, or differed for a while, from when the run began."""
        return sorted({file for each in self.sources_changed for file in each["files"]})

    def best_is_new(self) -> bool:
        """Returns whether the best is in no checkpoint yet, and takes it to be in one from now on."""
        best = None if self._best is None else self._best.label
        is_new, self._saved_best = best != self._saved_best, best
        return is_new

    def add(self, step: OuterStep | Trial) -> None:
        """Takes in an outer step, or a trial; of the best so far it keeps w_T.

        The stats of an outer step get its accuracy on the validation split, where there are classes.
        """
        is_better = self._best is None or step.validation_loss < self._best.validation_loss
        accuracy = None
        if is_better or isinstance(step, OuterStep):  # of a trial that is not the best nobody asks it
            seed = self._experiment.first_seed(step.outer_step)
            accuracy = self._experiment.validation_accuracy(step.params, seed)
        if isinstance(step, Trial):
            values: dict[str, Values] = {name: value.tolist() for name, value in step.hyperparameters.items()}
            point = Point(None, step.validation_loss, values, step.number, accuracy)
        else:
            step.stats.update({} if accuracy is None else {ACCURACY: accuracy})
            point = Point.of(step)
            self._mode = step.stats.get("mode", self._mode)
            if self._initial is None:
                self._initial, self._start_params = point, step.params
        if point.validation_loss == math.inf:  # it diverged
            return
        again = self._best is not None and self._best.trial is not None and point.trial is None
        if is_better or (again and self._best is not None and self._best.hyperparameters == point.hyperparameters):
            self._best, self._best_params = point, step.params

    def model(self) -> dict[str, Any] | None:
        """Returns the state_dict of the best so far as it is evaluated, on the CPU; None where there is none."""
        if self._best is None or not self._best_params:
            return None
        seed = self._experiment.first_seed(self._best.outer_step or 0)
        return state_on_host(self._experiment.evaluated(self._best_params, seed))

    def score_start(self) -> None:
        """Measures the test split at the start, if that is still to be done and its run did not diverge."""
        if self._start_params:
            self._initial_score = self._score(self._start_params, 0)
        self._start_params = None

    def result(self, status: State, mode: str, scored: bool = True) -> Result:
        """Returns the result so far; with `scored` the test split is measured at the best."""
        held_out = None
        if scored and self._best_params and self._best is not None:
            is_start = self._best == self._initial
            best = self._initial_score if is_start else self._score(self._best_params, self._best.outer_step or 0)
            held_out = HeldOut(self._initial_score, best) if best is not None else None
        wall_s = time.perf_counter() - self._start_s
        bias = self._experiment.mode.bias(self._experiment.steps)
        return Result(
            status,
            self._mode or mode,
            self._initial,
            self._best,
            held_out,
            wall_s,
            bias,
            fixed={name: knob.initial.tolist() for name, knob in self._experiment.space.fixed().items()},
            sources_changed=self.sources_changed,
        )

    def _score(self, params: Params, outer_step: int) -> Score | None:
        try:
            figures = self._experiment.test(params, outer_step)
        except (HyperoptError, KeyboardInterrupt):
            raise
        except Exception as error:
            if is_lacking(error):
                raise
            raise UsageError(
                f"the test split can't be scored: {type(error).__name__}: {error}. What was reached is in result.json"
            ) from error
        return None if figures is None else Score(figures.loss, figures.accuracy)
