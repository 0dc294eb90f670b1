"""A comparison from its start to its end: one hypergradient in each of several modes, each mode a run of its own.

The folder of the comparison holds the directory of an ordinary run for each mode, which measured outer step 0 and
updated nothing: its resolved.yaml is the recipe in that mode with `outer.steps: 0`. A mode that refused or lacked
memory has failed, and its status.json says why. A mode is written down when it has ended, before the next one begins.
"""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hyperopt_cli.comparison import Comparison, OnModeStep, Outcome, compare, measured
from hyperopt_cli.comparison.common_factors import Runs
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.instantiate.build import make_mode
from hyperopt_cli.modes import Mode
from hyperopt_cli.outer.outer_step import OuterStep, step_of
from hyperopt_cli.problem import Hyper
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.environment import environment
from hyperopt_cli.run_directory.naming import folder_name
from hyperopt_cli.run_directory.result import Point, Result
from hyperopt_cli.run_directory.status import LiveStatus, State, reported
from hyperopt_cli.run_directory.tensorboard import TensorBoardLog


class Candidate(NamedTuple):
    """A mode that is compared.

    Attributes:
        recipe: the recipe with that mode, and every default filled in.
        mode: the mode that was made from it.
    """

    recipe: Recipe
    mode: Mode


def execute_comparison(
    experiment: Experiment,
    candidates: Mapping[str, Candidate],
    written: str,
    root: Path,
    tolerance: float | None,
    on_step: OnModeStep,
    sources: Mapping[str, str],
) -> Comparison:
    """Compares modes on the first training run of `experiment`, and writes the run of each into a directory of its own.

    Args:
        experiment: built from the recipe; its own mode is not used.
        candidates: the modes, by the name that the comparison gives them.
        written: the recipe's text as the user has it, kept as recipe.yaml.
        root: the folder of the comparison, which is new.
        tolerance: which relative difference passes; None for that of the recipe's precision.
        on_step: a function that is told of every step.
        sources: digests of the user's own code, as `recipe.sources` returns them.
    """

    def measure(runs: Runs, hyper: Hyper, name: str, mode: Mode, on_step: OnModeStep | None) -> Outcome:
        began = time.perf_counter()
        recipe = candidates[name].recipe
        # what a comparison does: one hypergradient of one training run
        recipe = recipe.model_copy(update={"outer": recipe.outer.model_copy(update={"steps": 0, "replicas": 1})})
        directory = RunDirectory.create(root / folder_name(name), name)
        directory.write_recipe(written, recipe.to_yaml())
        directory.write_environment(environment(str(experiment.device)) | {"sources": dict(sources)})
        status = LiveStatus(directory.status, mode=recipe.mode.name)
        with reported(status):
            outcome = measured(runs, hyper, name, mode, partial(_beating, status, on_step))
            state = outcome.measurements.state_dict()
            if any(state.values()):
                directory.write_measurements(state)
            _write(experiment, recipe, written, directory, outcome, time.perf_counter() - began)
            compared = outcome.compared
            why = {} if outcome.result is not None else {"reason": f"{compared.status}: {compared.reason}"}
            status.finish(_state(outcome), **why)
        return outcome

    problem = experiment.problem(experiment.descent.seeds(experiment.seed, 0)[0])
    hyper = experiment.space.natural(experiment.space.initial())
    modes = {name: candidate.mode for name, candidate in candidates.items()}
    return compare(problem, hyper, modes, tolerance=tolerance, on_step=on_step, measure=measure)


def _beating(status: LiveStatus, on_step: OnModeStep | None, name: str, phase: str, done: int, steps: int) -> None:
    status.beat()
    if on_step is not None:
        on_step(name, phase, done, steps)


def _write(
    experiment: Experiment, recipe: Recipe, written: str, directory: RunDirectory, outcome: Outcome, wall_s: float
) -> None:
    """Writes the files of one mode's run: the outer step that was measured and the result, if it has any."""
    state = _state(outcome)
    if state == "failed":
        return
    step: OuterStep | None = None
    space, found = experiment.space, outcome.result
    if found is not None:  # it stands for outer step 0 of a run
        raw = {name: value.clone() for name, value in space.initial().items()}
        step = step_of(space, 0, raw, space.natural(raw), found.grad, [found])
        step.stats.update({key: found.stats[key] for key in ("growth", "digits") if key in found.stats})
        step.stats["price"] = make_mode(recipe).price(sum(value.numel() for value in raw.values()), experiment.steps)
    point = None if step is None else Point.of(step)
    bias = None if step is None else step.stats.get("bias")
    result = Result(
        state,
        recipe.mode.name,
        point,
        point,
        None,
        wall_s,
        bias,
        fixed={name: knob.initial.tolist() for name, knob in space.fixed().items()},
    )
    with TensorBoardLog(directory.tensorboard, recipe=written) as log:
        if step is not None:
            directory.append_metrics(step)
            log.on_outer_step(step)
        directory.write_result(result)
        log.on_end(result)


def _state(outcome: Outcome) -> State:
    if outcome.result is not None:
        return "done"
    return "diverged" if outcome.compared.status == "diverged" else "failed"
