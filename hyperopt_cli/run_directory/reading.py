"""Runs read back from their files, for `hyperopt show`."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.directory import TRAIN, RunDirectory
from hyperopt_cli.run_directory.json_files import read_json, read_lines
from hyperopt_cli.run_directory.result import Result, Values
from hyperopt_cli.run_directory.status import read_status, state_of


class Metrics(NamedTuple):
    """One line of metrics.jsonl; the four dictionaries share their keys and hold nested lists.

    `bias` is what biases the hypergradient; None where it is exact. `mode` is what `auto` chose, `factors` are the
    fractions that a reversal multiplies by, by label; None where there are none. `sources_changed` are files of the
    user's own code that had changed since the run began; None where none had. `checks` is what the comparison with
    central differences has to say of the hypergradient; None where that is nothing.
    `digits` are the decimal digits that the hypergradient has, `growth` is what the run amplifies perturbations by,
    `noise` is why the hypergradient says nothing, `num_asked_steps` are plain inner steps that were taken to find out;
    `halvings` of the outer step that led here, and in `halved_for` the reason of each. The two losses are infinite
    where the run of the start diverged, and its hypergradients None where the descent began elsewhere. `price` is what
    the run has cost so far, in plain training runs. `validation_accuracy` is of the first seed, None without classes.
    """

    outer_step: int
    validation_loss: float
    training_loss: float
    hyperparameters: dict[str, Values]
    hypergradient: dict[str, Values] | None
    raw_hyperparameters: dict[str, Values]
    raw_hypergradient: dict[str, Values] | None
    wall_s: float
    peak_bytes: int
    num_gradients: int
    num_hvps: int
    price: float | None = None
    bias: str | None = None
    mode: str | None = None
    factors: dict[str, str] | None = None
    sources_changed: list[str] | None = None
    checks: str | None = None
    digits: float | None = None
    growth: float | None = None
    noise: str | None = None
    num_asked_steps: int = 0
    halvings: int = 0
    halved_for: tuple[str, ...] | list[str] = ()
    validation_accuracy: float | None = None


class Run(NamedTuple):
    """A run as its files tell it.

    Attributes:
        directory: where they lie.
        state: running, done, diverged, failed, interrupted or killed.
        metrics: the outer steps so far, entry n measured before update n.
        result: None until the run has one.
    """

    directory: RunDirectory
    state: str
    metrics: list[Metrics]
    result: Result | None


def read(root: Path) -> Run:
    """Returns the run in `root`, which may still be going on.

    Raises:
        UsageError: `root` is not the directory of a run, or one of its files is damaged.
    """
    directory = RunDirectory.open(root)
    result = Result.from_json(read_json(directory.result)) if directory.result.exists() else None
    return Run(directory, state_of(directory), read_metrics(directory.metrics), result)


def best_hyperparameters(directory: RunDirectory) -> dict[str, Values]:
    """Returns the natural values of what was tuned, at the best point of a run.

    Raises:
        UsageError: the run has no result yet, or none that is a best.
    """
    root = directory.root
    if read_status(directory).get("mode") == TRAIN:
        raise UsageError(f"{root}: hyperopt train has written there, and tunes nothing; give the run that has tuned")
    if not directory.result.exists():
        raise UsageError(f"{root} has no result.json yet; wait for the run, continue it, or give --untuned")
    best = Result.from_json(read_json(directory.result)).best
    if best is None or best.validation_loss == math.inf:
        raise UsageError(f"{root}: the run diverged before anything was measured; give --untuned, or another run")
    return best.hyperparameters


def read_metrics(path: Path) -> list[Metrics]:
    """Returns the lines of metrics.jsonl, without a last one that is still being written; a missing file has none.

    Raises:
        UsageError: a line is damaged.
    """

    def made(content: dict[str, Any]) -> Metrics:
        for key in ("validation_loss", "training_loss"):
            content[key] = math.inf if content[key] is None else content[key]
        return Metrics(**content)

    return read_lines(path, made)
