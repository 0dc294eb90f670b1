"""The runs of a folder, each on a line: what it is, how it stands, what it has come to."""

import math
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from hyperopt_cli.errors import HyperoptError
from hyperopt_cli.run_directory.directory import TRAIN, RunDirectory
from hyperopt_cli.run_directory.json_files import read_json, read_lines
from hyperopt_cli.run_directory.reading import read_metrics
from hyperopt_cli.run_directory.result import Result
from hyperopt_cli.run_directory.status import read_status, state_of
from hyperopt_cli.run_directory.trained import read_trained

DAMAGED = "damaged"
CONTINUED = ("interrupted", "killed", "failed")  # what is worth to be continued as it is
# A run has one of them at its beginning.
FILES = ("status.json", "resolved.yaml")


class RunRow(NamedTuple):
    """What one line of the list of runs says.

    Attributes:
        name: its folder, seen from the folder that is listed.
        directory: its folder, seen from the working directory.
        mode: the recipe's, or the one that `auto` has chosen; `train` of plain training; None where it is not known.
        state: running, done, diverged, failed, interrupted, killed, or damaged.
        reason: why, where it ended by itself or is damaged.
        outer_step: the one that is measured, or the last one.
        best: the lowest validation loss so far.
        started: when the process that wrote last had begun, ISO 8601.
        age_s: seconds since `started`.
        wall_s: seconds of the whole run once it has ended, else of the outer steps that are measured.
    """

    name: str
    directory: str
    mode: str | None = None
    state: str = DAMAGED
    reason: str | None = None
    outer_step: int | None = None
    best: float | None = None
    started: str | None = None
    age_s: float | None = None
    wall_s: float | None = None


def runs_below(folder: Path) -> list[RunRow]:
    """Returns the runs in `folder` and in the folders of jobs there, the newest first, damaged ones included.

    A folder that is itself a run is its only row.
    """
    if _is_run(folder):
        return [_row(folder.resolve().name, folder)]
    roots = (root for pattern in ("*", "*/*") for root in folder.glob(pattern) if _is_run(root))
    return sorted((_row(str(root.relative_to(folder)), root) for root in roots), key=_began, reverse=True)


def _is_run(root: Path) -> bool:
    return any(os.path.isfile(root / name) for name in FILES)  # False too where the folder can't be read


def _began(row: RunRow) -> float:
    """Returns when the run began, in seconds since the epoch: by its own word, or by its folder's time."""
    if row.started is not None:
        return datetime.fromisoformat(row.started).timestamp()
    try:
        return Path(row.directory).stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0


def _row(name: str, root: Path) -> RunRow:
    row = RunRow(name, str(root))
    try:
        return _told(row, RunDirectory.open(root))
    except Exception as error:  # whatever stands there, the other runs are to be listed
        why = str(error) if isinstance(error, HyperoptError) else f"{type(error).__name__}: {error}"
        return row._replace(reason=why)


def _told(row: RunRow, directory: RunDirectory) -> RunRow:
    """Returns the row with what the run's files say."""
    status = read_status(directory)
    started = datetime.fromisoformat(status["started"])
    row = row._replace(
        mode=status.get("mode"),
        state=state_of(directory),
        reason=status.get("reason"),
        started=started.isoformat(),
        age_s=max(0.0, (datetime.now(UTC) - started).total_seconds()),
    )
    if row.mode == TRAIN:
        runs = read_trained(directory.metrics)
        losses = [run.validation_loss for run in runs]
        return row._replace(best=_least(losses), wall_s=sum(run.wall_s for run in runs))
    metrics = read_metrics(directory.metrics)
    result = Result.from_json(read_json(directory.result)) if directory.result.exists() else None
    chosen = [line.mode for line in metrics if line.mode is not None]
    losses = [line.validation_loss for line in metrics]
    losses += [loss for loss in read_lines(directory.trials, itemgetter("validation_loss")) if loss is not None]
    return row._replace(
        mode=chosen[-1] if chosen else status.get("mode", result.mode if result is not None else None),
        # of a run that goes on, the one that is measured now
        outer_step=metrics[-1].outer_step if metrics and row.state == "done" else status.get("outer_step"),
        best=_least(losses),
        wall_s=result.wall_s if result is not None else sum(line.wall_s for line in metrics),
    )


def _least(losses: Iterable[float]) -> float | None:
    return min(filter(math.isfinite, losses), default=None)


def to_continue(rows: list[RunRow]) -> RunRow | None:
    """Returns the newest run that was stopped before its end and can be continued.

    One that failed before any measurement is passed over, and so is one of `hyperopt train`.
    """
    ended = (row for row in rows if row.state in CONTINUED and row.mode != TRAIN)
    return next((row for row in ended if row.state != "failed" or row.best is not None), None)


def as_json(row: RunRow) -> dict[str, Any]:
    """Returns the row as a dictionary, under the keys that its JSON object has."""
    return {("best_validation_loss" if key == "best" else key): value for key, value in row._asdict().items()}
