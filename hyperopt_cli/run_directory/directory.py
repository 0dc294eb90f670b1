"""The directory of one run: every path in it, and every file that is written while the run goes on.

    recipe.yaml resolved.yaml environment.json status.json metrics.jsonl trials.jsonl result.json model.pt
    measurements.json tensorboard/ checkpoints/

(trials.jsonl where plain training runs were taken beside the outer steps, measurements.json where `engine: auto` chose,
checkpoints/ where there were any).

A document is renamed into place when it is complete; metrics.jsonl grows by one line an outer step, trials.jsonl by one
a plain training run.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperopt_cli.errors import StorageError, UsageError
from hyperopt_cli.run_directory.json_files import (
    read_json,
    replacing,
    revive,
    to_text,
    whole_lines,
    write_json,
    write_text,
)
from hyperopt_cli.run_directory.measured import factors_text
from hyperopt_cli.run_directory.naming import folder_name

if TYPE_CHECKING:
    from hyperopt_cli.run_directory.measured import Measured
    from hyperopt_cli.run_directory.result import Result

WRITTEN_STATS = ("wall_s", "peak_bytes", "num_gradients", "num_hvps", "price")
# Only there where the outputs are of classes.
ACCURACY = "validation_accuracy"
# Only there where the hypergradient is not exact.
BIAS, MODE = "bias", "mode"
# Only there where the comparison with central differences has something to say.
CHECKS = "checks"
# Only there where the run was continued with other code than it had begun with.
SOURCES_CHANGED = "sources_changed"
# How far the hypergradient can be trusted (`outer/noise.py`); the last four only there where they say something.
TRUSTED = ("digits", "growth", "noise", "num_asked_steps", "halvings", "halved_for")
TRAIN = "train"  # the mode in status.json of a run without hypergradients
LATEST = "LATEST"  # in `checkpoints`: the name of the newest


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run and the writers of its files.

    Attributes:
        root: the directory itself.
    """

    root: Path

    @classmethod
    def create(cls, out: Path | None, name: str) -> RunDirectory:
        """Makes a directory that no other process has.

        Args:
            out: the directory to make; None for `runs/<name>-<time>-<id>` below the working directory.
            name: the recipe's name.

        Raises:
            UsageError: `out` is a file or holds something already, or can't be made.
        """
        root = new_folder(out, name)
        try:
            (root / "tensorboard").mkdir()  # fails for all but one of the processes that found the directory empty
        except OSError as error:
            raise UsageError(_not_made(root, error)) from None
        return cls(root)

    @classmethod
    def open(cls, root: Path) -> RunDirectory:
        """Returns the directory of a run that was started before.

        Raises:
            UsageError: `root` is not the directory of a run.
        """
        directory = cls(root)
        if not directory.status.is_file():
            if any(root.glob("*/status.json")):
                raise UsageError(
                    f"{root} holds runs; give one of them: hyperopt runs {shlex.quote(str(root))} lists them"
                )
            what = "has no status.json" if root.is_dir() else "is not a directory"
            raise UsageError(f"{root} {what}; give the directory of a run, such as runs/<recipe>-<time>-<id>")
        return directory

    @property
    def recipe(self) -> Path:
        """The path of recipe.yaml, which holds the recipe as the user wrote it."""
        return self.root / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The path of resolved.yaml, the recipe with defaults and command-line changes filled in."""
        return self.root / "resolved.yaml"

    @property
    def environment(self) -> Path:
        """The path of environment.json, which has versions, device and command line."""
        return self.root / "environment.json"

    @property
    def status(self) -> Path:
        """The path of status.json, which says whether the run is going on, and how it ended."""
        return self.root / "status.json"

    @property
    def metrics(self) -> Path:
        """The path of metrics.jsonl, which has one line for each outer step."""
        return self.root / "metrics.jsonl"

    @property
    def trials(self) -> Path:
        """The path of trials.jsonl, which has one line for each plain training run beside the outer steps."""
        return self.root / "trials.jsonl"

    @property
    def model(self) -> Path:
        """The path of model.pt, the state_dict of the model as the best outer step has trained it."""
        return self.root / "model.pt"

    @property
    def result(self) -> Path:
        """The path of result.json, which holds the result of the run."""
        return self.root / "result.json"

    @property
    def measurements(self) -> Path:
        """The path of measurements.json: what was decided by measuring (engines, compiling, plans), and why."""
        return self.root / "measurements.json"

    @property
    def tensorboard(self) -> Path:
        """The path of the folder that holds TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The path of the folder that holds the checkpoints."""
        return self.root / "checkpoints"

    def write_recipe(self, written: str, resolved: str) -> None:
        """Writes recipe.yaml, the recipe as written, and resolved.yaml, with everything filled in."""
        write_text(self.recipe, written)
        write_text(self.resolved, resolved)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes environment.json, what the run runs on."""
        write_json(self.environment, environment)

    def write_model(self, state: Mapping[str, Any]) -> None:
        """Writes model.pt, a state_dict with tensors on the CPU, which `torch.load(weights_only=True)` reads.

        Raises:
            StorageError: it cannot be written; a model that was there before is intact.
        """
        from hyperopt_cli.run_directory.checkpoints import save  # not above: it needs torch

        try:
            with replacing(self.model, "xb") as file:
                save(dict(state), file)
        except OSError as error:
            raise StorageError(
                f"{self.model} can't be written ({error.strerror or error}); result.json is intact. Make room or make "
                "it writable"
            ) from error

    def write_result(self, result: Result) -> None:
        """Writes result.json, the result of the run."""
        write_json(self.result, result.to_json())

    def write_measurements(self, state: Mapping[str, Any]) -> None:
        """Writes the state of `Measurements`, so that a later part of the run need not measure it again.

        Nothing is written where nothing was decided, or where the file holds the same already.
        """
        text, path = to_text(state, indent=2) + "\n", self.measurements
        if any(state.values()) and not (path.exists() and path.read_text(encoding="utf-8") == text):
            write_text(path, text)

    def read_measurements(self) -> Any:
        """Returns what `write_measurements` wrote; it is empty where there is no file, or none that can be read."""
        try:
            return revive(read_json(self.measurements))
        except UsageError:
            return {}

    def append_metrics(self, step: Measured) -> None:
        """Adds the line of one outer step; it is on the disk when this returns."""
        line = {
            "outer_step": step.outer_step,
            "validation_loss": None if step.validation_loss == math.inf else step.validation_loss,
            **{key: step.stats[key] for key in (ACCURACY,) if key in step.stats},
            "training_loss": None if step.training_loss == math.inf else step.training_loss,
            "hyperparameters": step.hyperparameters,
            "hypergradient": step.hypergradient,
            "raw_hyperparameters": step.raw_hyperparameters,
            "raw_hypergradient": step.raw_hypergradient,
            **{key: step.stats[key] for key in WRITTEN_STATS if key in step.stats},
            **{key: step.stats[key] for key in (*TRUSTED, BIAS, MODE, CHECKS, SOURCES_CHANGED) if key in step.stats},
            **({"factors": factors_text(step.stats["factors"])} if "factors" in step.stats else {}),
        }
        append_line(self.metrics, line)

    def append_trial(self, line: Mapping[str, Any]) -> None:
        """Adds the line of a plain training run; it is on the disk when this returns."""
        append_line(self.trials, line)

    def rewind(self, outer_step: int, trial: int) -> None:
        """Drops the lines from `outer_step` and `trial` on, so that a resumed run can add them.

        Args:
            outer_step: the first line of metrics.jsonl to drop; a half-written last one is dropped too.
            trial: likewise of trials.jsonl.
        """
        for path, key, number in ((self.metrics, "outer_step", outer_step), (self.trials, "trial", trial)):
            if path.exists() or path == self.metrics:
                kept = [line for line in whole_lines(path) if json.loads(line)[key] < number]
                write_text(path, "".join(kept))


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file; it is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_text(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def new_folder(out: Path | None, name: str) -> Path:
    """Makes a folder for a run, or for several, unless it is there and empty.

    Args:
        out: the folder to make; None for `runs/<name>-<time>-<id>` below the working directory.
        name: the recipe's name.

    Raises:
        UsageError: `out` is a file or holds something already, or can't be made.
    """
    unique = f"{folder_name(name)}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    root = out if out is not None else Path("runs") / unique
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise FileExistsError
    except OSError as error:
        raise UsageError(_not_made(root, error)) from None
    return root


def _not_made(root: Path, error: OSError) -> str:
    if not isinstance(error, FileExistsError | NotADirectoryError):
        return f"{root} can't be made ({error.strerror}); give a writable place with --out"
    what = "holds a run or other files already" if root.is_dir() else "is a file, or lies below one"
    return f"{root} {what}; a run needs a new or empty directory: give another --out"
