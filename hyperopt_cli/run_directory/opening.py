"""Which run is continued, whether its recipe is still the same, and that no other process writes into it."""

import fcntl
import glob
import os
import shlex
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from hyperopt_cli.errors import ANOTHER_RUN, Remedy, UsageError
from hyperopt_cli.run_directory.directory import TRAIN, RunDirectory
from hyperopt_cli.run_directory.naming import folder_name
from hyperopt_cli.run_directory.status import read_status, state_of

LOCK = ".lock"
# what a run may have written that was killed before it had a status
BEGUN = {"checkpoints", "tensorboard", "recipe.yaml", "resolved.yaml", "environment.json", "metrics.jsonl"}
Difference = Callable[[str], str]  # of a resolved recipe from the one that is to be run: empty, or lines


def opened(resume: str, out: Path | None, name: str, difference: Difference) -> tuple[RunDirectory, bool]:
    """Returns the directory of a run, and whether it is one that is continued.

    Args:
        resume: "never", "auto" (the run in `out`, or without `out` the newest one of that recipe that has not come to
            its end; a new one if there is none), or the directory of a run.
        out: where a new directory is made; None for one below runs/.
        name: the recipe's name.
        difference: of the resolved recipe that it is given from the one to be run.

    Raises:
        UsageError: there is something else, or the run there has another recipe.
    """
    if resume == "never":
        try:
            return RunDirectory.create(out, name), False
        except UsageError as error:
            is_run = out is not None and RunDirectory(out).status.is_file()
            go_on = Remedy("to continue the run there", ("--resume", "auto"), ("--resume",))
            error.remedied(ANOTHER_RUN, *([go_on] if is_run else ()))
            raise
    if resume != "auto":
        if out is not None:
            raise UsageError(f"--resume {resume}: got --out {out} too; give one of them").remedied(
                Remedy("to continue that run", drop=("--out",))
            )
        found = RunDirectory.open(Path(resume))
    elif out is None:
        newest = _newest_unfinished(name, difference)
        if newest is None:
            return RunDirectory.create(None, name), False
        found = newest
    elif out.is_dir() and (there := {path.name for path in out.iterdir() if not path.name.endswith(".tmp")}):
        found = RunDirectory(out) if there <= BEGUN else RunDirectory.open(out)
    else:
        return RunDirectory.create(out, name), False
    if found.status.is_file() and read_status(found).get("mode") == TRAIN:
        raise UsageError(
            f"{found.root}: hyperopt train has written there, which leaves nothing to continue; start another run"
        ).remedied(ANOTHER_RUN)
    # A run that was killed before it had written anything has no recipe yet.
    if found.resolved.is_file() and (differs := _differs(found, difference)):
        raise UsageError(
            f"{found.root}: the run there has another recipe; only outer.steps, outer.budget, outer.trials, "
            f"checkpoint_every_s and shard may change:\n{differs}\nContinue it with its own recipe, which lies there "
            f"(hyperopt run --resume {shlex.quote(str(found.root))}), or start another run"
        ).remedied(ANOTHER_RUN)
    return found, True


def locked(directory: RunDirectory) -> IO[str]:
    """Keeps every other process out until the file that is returned is closed, or this process has ended.

    Raises:
        UsageError: another process is at work here.
    """
    directory.checkpoints.mkdir(exist_ok=True)
    file = (directory.checkpoints / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        file.close()
        raise UsageError(
            f"{directory.root}: {who} is at work there; wait for it, end it, or start another run"
        ).remedied(ANOTHER_RUN) from None
    except OSError:  # some shared file systems have no locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _newest_unfinished(name: str, difference: Difference) -> RunDirectory | None:
    roots = Path("runs").glob(f"{glob.escape(folder_name(name))}-*")
    for root in sorted(roots, key=lambda path: path.stat().st_mtime, reverse=True):
        directory = RunDirectory(root)
        if not directory.status.is_file() or not directory.resolved.is_file():
            continue
        with suppress(UsageError):  # a damaged one
            is_of_train = read_status(directory).get("mode") == TRAIN
            ended = state_of(directory) not in ("done", "running")
            if ended and not is_of_train and not _differs(directory, difference):
                return directory
    return None


def _differs(directory: RunDirectory, difference: Difference) -> str:
    return difference(directory.resolved.read_text(encoding="utf-8"))
