"""Which run is continued, whether its recipe is still the same, and that no other process writes into it."""

import difflib
import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Any

import yaml

from hyperopt_cli.errors import UsageError
from hyperopt_cli.runs.directory import RunDirectory
from hyperopt_cli.runs.status import state_of

LOCK = ".lock"
BEGUN = {LOCK, "tensorboard", "recipe.yaml", "resolved.yaml", "environment.json"}  # of a run killed before its status
FREE = (("outer", "steps"), ("checkpoint_every_s",))  # what may change from one part of a run to the next


def opened(resume: str, out: Path | None, name: str, resolved: str) -> tuple[RunDirectory, bool]:
    """The directory of a run, and whether it is one that is continued.

    Args:
        resume: "never", "auto" (the run in `out`, or without `out` the newest one of that recipe that has not come to
            its end; a new one if there is none), or the directory of a run.
        out: where a new one is made; None: below runs/.
        name: the recipe's.
        resolved: the recipe with every default filled in.

    Raises:
        UsageError: there is something else, or the run there has another recipe.
    """
    if resume == "never":
        return RunDirectory.create(out, name), False
    if resume != "auto":
        if out is not None:
            raise UsageError(f"--resume {resume}: got --out {out} too; give one of them")
        found = RunDirectory.open(Path(resume))
    elif out is None:
        newest = _newest_unfinished(name, resolved)
        if newest is None:
            return RunDirectory.create(None, name), False
        found = newest
    elif out.is_dir() and (there := {path.name for path in out.iterdir()}):
        found = RunDirectory(out) if there <= BEGUN else RunDirectory.open(out)
    else:
        return RunDirectory.create(out, name), False
    if found.comparison.exists():
        raise UsageError(f"{found.root} is a comparison of modes, which is not continued; start it anew")
    _check_same(found, resolved)
    return found, True


def locked(directory: RunDirectory) -> IO[str]:
    """Keeps every other process out until the file that is returned is closed, or this process has ended.

    Raises:
        UsageError: another process is at work here.
    """
    file = (directory.root / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        file.close()
        raise UsageError(
            f"{directory.root}: {who} is at work there; wait for it, end it, or give another --out"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _newest_unfinished(name: str, resolved: str) -> RunDirectory | None:
    for root in sorted(Path("runs").glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True):
        directory = RunDirectory(root)
        if not directory.status.is_file() or not directory.resolved.is_file() or directory.comparison.exists():
            continue
        if state_of(directory) != "done" and _difference(directory, resolved) == "":
            return directory
    return None


def _check_same(directory: RunDirectory, resolved: str) -> None:
    if not directory.resolved.is_file():  # it was killed before it had written anything
        return
    if difference := _difference(directory, resolved):
        free = ", ".join(".".join(path) for path in FREE)
        raise UsageError(
            f"{directory.root}: the run there has another recipe; what may change is {free}:\n{difference}\n"
            "Give it the same recipe and overrides, or start another run with --out"
        )


def _difference(directory: RunDirectory, resolved: str) -> str:
    before, now = (_fixed(text) for text in (directory.resolved.read_text(encoding="utf-8"), resolved))
    names = (f"{directory.root}/resolved.yaml", "now")
    return "\n".join(difflib.unified_diff(before, now, *names, n=1, lineterm=""))


def _fixed(resolved: str) -> list[str]:
    """The lines of what may not change."""
    content: Any = yaml.safe_load(resolved)
    for *parents, last in FREE:
        section = content
        for key in parents:
            section = section.get(key, {})
        section.pop(last, None)
    return yaml.safe_dump(content, sort_keys=False).splitlines()
