"""Whether a run is going on: status.json, refreshed while it does, and the reading of it that sees a killed run.

A process that was killed can't say so. On its own host it is looked up by its pid and by the time at which the kernel
started it, because pids are used again; from another host only the age of its heartbeat tells.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from hyperopt_cli.errors import RankLostError, Stopped, UsageError
from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.json_files import read_json, revive, write_json

State = Literal["running", "done", "diverged", "failed", "interrupted"]

REQUIRED = {"state", "pid", "pid_started_ticks", "host", "heartbeat"}

# A first step may compile for minutes without a beat.
SILENCE_S = 900.0


class LiveStatus:
    """The writer of one run's status.json; writes `running` when it is made.

    Args:
        path: the file, usually `RunDirectory.status`.
        every_s: the shortest time between two refreshes.
        **fields: more to keep, e.g. `outer_step=0`.
    """

    def __init__(self, path: Path, every_s: float = 5.0, **fields: Any) -> None:
        self._path, self._every_s = path, every_s
        self._content: dict[str, Any] = {
            "state": "running",
            "pid": os.getpid(),
            "pid_started_ticks": _started_ticks(os.getpid()),
            "host": socket.gethostname(),
            "started": _now(),
            "heartbeat": "",
            "outer_step": 0,
            **fields,
        }
        self._write()

    def beat(self, **fields: Any) -> None:
        """Says that the run is alive: keeps the fields at once, and writes the file every `every_s` seconds at most."""
        self._content |= fields
        if time.monotonic() - self._written_s >= self._every_s:
            self._write()

    def finish(self, state: State, **fields: Any) -> None:
        """Writes at once how the run ended."""
        self._content |= {**fields, "state": state}
        self._write()

    def _write(self) -> None:
        self._content["heartbeat"] = _now()
        write_json(self._path, self._content)
        self._written_s = time.monotonic()


@contextmanager
def reported(status: LiveStatus) -> Iterator[None]:
    """A context that writes how the process ended, whatever ends it."""
    try:
        yield
    except KeyboardInterrupt:
        status.finish("interrupted")
        raise
    except (Stopped, RankLostError) as stopped:
        status.finish("interrupted", reason=str(stopped))
        raise
    except BaseException as error:
        status.finish("failed", reason=f"{type(error).__name__}: {error}")
        raise


def state_of(directory: RunDirectory) -> str:
    """Returns the state in status.json, or `killed` where it says `running` but the process is gone.

    Raises:
        UsageError: status.json is missing or damaged.
    """
    status = read_status(directory)
    return "killed" if status["state"] == "running" and not alive(status) else str(status["state"])


def read_status(directory: RunDirectory) -> dict[str, Any]:
    """Returns the content of status.json.

    Raises:
        UsageError: status.json is missing or damaged.
    """
    status: dict[str, Any] = revive(read_json(directory.status))
    missing = REQUIRED - status.keys()
    if missing:
        raise UsageError(f"{directory.status} lacks {', '.join(sorted(missing))}; it is not a run's: give another run")
    return status


def alive(status: dict[str, Any]) -> bool:
    """Returns whether the process that wrote `status` still runs, as far as this host can tell."""
    if status["host"] == socket.gethostname() and Path("/proc/self/stat").exists():
        ticks = _started_ticks(int(status["pid"]))
        return ticks is not None and ticks == status["pid_started_ticks"]
    silence = datetime.now(UTC) - datetime.fromisoformat(status["heartbeat"])
    return silence < timedelta(seconds=SILENCE_S)


def _started_ticks(pid: int) -> int | None:
    """Returns when process `pid` started, in clock ticks since boot; None if it is gone or there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name, in parentheses, may hold blanks: proc(5), from field 3
    state, started = fields[0], fields[19]
    return None if state in "ZX" else int(started)  # a zombie has ended; its parent has not asked yet


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
