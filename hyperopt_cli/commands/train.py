"""Plain training from its start to its result: given or tuned values, one seed or several, no hypergradient."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hyperopt_cli.errors import NonFiniteError, Stopped, UsageError
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.instantiate.models import state_on_host
from hyperopt_cli.modes.plain_run import plain_run
from hyperopt_cli.outer.outer_step import training_loss
from hyperopt_cli.problem import Hyper
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.run_directory.directory import TRAIN, RunDirectory, append_line
from hyperopt_cli.run_directory.environment import environment
from hyperopt_cli.run_directory.json_files import write_json
from hyperopt_cli.run_directory.result import Values
from hyperopt_cli.run_directory.status import LiveStatus, State, reported
from hyperopt_cli.run_directory.tensorboard import TensorBoardLog
from hyperopt_cli.run_directory.trained import Trained, summary_of

OnRunStep = Callable[[str, str, int, int], None]  # the training run, its phase, steps that are done, steps in all


def execute_training(
    experiment: Experiment,
    recipe: Recipe,
    written: str,
    directory: RunDirectory,
    values: Mapping[str, Hyper],
    num_seeds: int,
    on_step: OnRunStep,
    on_run: Callable[[Trained], None],
    sources: Mapping[str, str],
) -> list[Trained]:
    """Trains with each of the values at each seed, and writes everything into `directory`.

    Args:
        experiment: built from `recipe`.
        recipe: with every default filled in, kept as resolved.yaml.
        written: the recipe's text as the user has it, kept as recipe.yaml.
        directory: a new one.
        values: natural values by their kind, `tuned` or `untuned`; model.pt is of the first kind at the first seed.
        num_seeds: the recipe's seed, and so many less one that are derived from it.
        on_step: is told of every inner step.
        on_run: is told of every training run, once its line is on the disk.
        sources: digests of the user's own code, as `recipe.sources` returns them.

    Returns:
        The training runs; those that diverged say why.

    Raises:
        Stopped: a signal came; what was measured before is on the disk.
        StorageError: model.pt cannot be written.
    """
    began, runs, asked = time.perf_counter(), list[Trained](), next(iter(values))
    directory.write_recipe(written, recipe.to_yaml())
    directory.write_environment(environment(str(experiment.device)) | {"sources": dict(sources)})
    status = LiveStatus(directory.status, mode=TRAIN)

    def write_result(state: State) -> None:
        fixed = {name: knob.initial.tolist() for name, knob in experiment.space.fixed().items()}
        about = {"status": state, "mode": TRAIN, "steps": experiment.steps, "wall_s": time.perf_counter() - began}
        write_json(directory.result, {**about, **summary_of(runs), "fixed": fixed})

    def beating(name: str, phase: str, done: int, steps: int) -> None:
        status.beat()
        on_step(name, phase, done, steps)

    with reported(status), TensorBoardLog(directory.tensorboard, recipe=written) as log:
        try:
            for number, seed in enumerate(experiment.seeds(num_seeds)):
                for kind, hyper in values.items():
                    keeps = directory if number == 0 and kind == asked else None
                    step_done = partial(beating, f"{kind} values, seed {number + 1} of {num_seeds}")
                    run = _trained(experiment, kind, seed, hyper, step_done, log, f"{kind}_{number:04d}", keeps)
                    runs.append(run)
                    append_line(directory.metrics, run.to_json())
                    on_run(run)
        except (KeyboardInterrupt, Stopped):
            write_result("interrupted")
            raise
        why = next((run.why for run in runs if run.why is not None and run.values == asked), None)
        state: State = "done" if why is None else "diverged"
        write_result(state)
        status.finish(state, **({} if why is None else {"reason": why}))
    return runs


def _trained(
    experiment: Experiment,
    kind: str,
    seed: int,
    hyper: Hyper,
    on_step: Callable[[str, int, int], None],
    log: TensorBoardLog,
    name: str,
    keeps: RunDirectory | None,
) -> Trained:
    """Trains once, and returns what was measured; the curve goes to the log, the model to the directory that keeps it.

    The model is written before the test split is measured, so that a signal there does not take it away.
    """
    numbers: dict[str, Values] = {key: value.tolist() for key, value in hyper.items()}
    began, about = time.perf_counter(), (kind, seed, experiment.steps, numbers)
    try:
        run = plain_run(experiment.problem(seed), hyper, on_step=on_step)
    except NonFiniteError as error:
        return Trained(*about, time.perf_counter() - began, why=str(error))
    log.add_inner_loss(name, run.stats["inner_loss"].cpu())
    model = experiment.evaluated(run.params, seed)
    if keeps is not None:
        keeps.write_model(state_on_host(model))
    test = experiment.test_figures(model)
    return Trained(
        *about,
        run.stats["wall_s"],
        float(run.value),
        training_loss(run),
        experiment.validation_accuracy(run.params, seed),
        None if test is None else test.loss,
        None if test is None else test.accuracy,
    )


def overridden(overrides: Sequence[str]) -> frozenset[str] | None:
    """Returns the names of the hyperparameters that overrides change; None where they change the whole section."""
    keys = [override.partition("=")[0].split(".") for override in overrides]
    of = [key for key in keys if key[0] == "hyperparameters"]
    return None if any(len(key) == 1 for key in of) else frozenset(key[1] for key in of)


def tuned_values(tuned: Mapping[str, Any], start: Hyper, given: frozenset[str] | None) -> Hyper:
    """Returns natural values for a training run: those that were tuned, and the start of what the command line gives.

    Args:
        tuned: the values of the best point in result.json, by their key in `hyper`.
        start: what the recipe, with its overrides, starts from.
        given: names under `hyperparameters` that an override has changed; None: all of them.

    Raises:
        UsageError: the tuned values are of another recipe, or another number of steps.
    """
    values = {}
    for key, value in start.items():
        if given is None or key.partition(".")[0] in given:
            values[key] = value
            continue
        if key not in tuned:
            raise UsageError(f"hyperparameters: got a run that has not tuned {key}; give a value for it, or --untuned")
        values[key] = torch.tensor(tuned[key], dtype=value.dtype)
        if values[key].shape != value.shape:
            raise UsageError(
                f"hyperparameters.{key}: got tuned values of shape {list(values[key].shape)}; must be "
                f"{list(value.shape)} here: a schedule per_step has a number for each step, so that steps has to stay "
                "as it was; windows and knots stretch. Give the steps of the run, or --untuned"
            )
    return values
