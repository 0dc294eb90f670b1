import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.status import SILENCE_S, LiveStatus, alive, read_status, state_of

ENDLESS = """
import sys, time
from pathlib import Path
from hyperopt_cli.run_directory.status import LiveStatus
LiveStatus(Path(sys.argv[1]))
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "digits")


def change(directory: RunDirectory, **fields: Any) -> None:
    directory.status.write_text(json.dumps({**json.loads(directory.status.read_text()), **fields}))


def test_a_run_that_goes_on_is_running(directory: RunDirectory) -> None:
    LiveStatus(directory.status)
    assert state_of(directory) == "running"


@pytest.mark.parametrize("reaped", [False, True])
def test_a_killed_run_is_seen_as_killed(directory: RunDirectory, reaped: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(directory.status)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    assert state_of(directory) == "running"
    process.send_signal(signal.SIGKILL)
    if reaped:
        process.wait()
    deadline = time.monotonic() + 10
    while state_of(directory) == "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state_of(directory) == "killed"
    process.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read from /proc")
def test_a_pid_that_another_process_took_over_is_no_sign_of_life(directory: RunDirectory) -> None:
    LiveStatus(directory.status)
    change(directory, pid_started_ticks=1)
    assert state_of(directory) == "killed"


@pytest.mark.parametrize(("age_s", "state"), [(0.0, "running"), (SILENCE_S + 60, "killed")])
def test_a_run_on_another_host_is_judged_by_its_heartbeat(directory: RunDirectory, age_s: float, state: str) -> None:
    LiveStatus(directory.status)
    beat = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - age_s))
    change(directory, host="elsewhere", pid=2**30, heartbeat=beat)
    assert state_of(directory) == state


def test_an_end_stays_the_end_when_the_process_is_gone(directory: RunDirectory) -> None:
    LiveStatus(directory.status).finish("diverged", message="loss is not finite")
    change(directory, pid=2**30)
    assert state_of(directory) == "diverged"
    assert read_status(directory)["message"] == "loss is not finite"


def test_beats_within_the_interval_are_written_with_the_next(directory: RunDirectory) -> None:
    status = LiveStatus(directory.status, every_s=0.2)
    status.beat(outer_step=1)
    assert read_status(directory)["outer_step"] == 0
    time.sleep(0.25)
    status.beat(inner_step=7)
    assert (read_status(directory)["outer_step"], read_status(directory)["inner_step"]) == (1, 7)


def test_times_are_utc(directory: RunDirectory) -> None:
    LiveStatus(directory.status)
    assert read_status(directory)["started"].endswith("+00:00")
    assert alive(read_status(directory))


def test_a_damaged_status_is_named(directory: RunDirectory) -> None:
    directory.status.write_text("{")
    with pytest.raises(UsageError, match=r"status\.json is not JSON"):
        state_of(directory)


def test_a_status_of_something_else_is_named(directory: RunDirectory) -> None:
    directory.status.write_text('{"state": "running"}')
    with pytest.raises(UsageError, match="lacks heartbeat, host, pid"):
        state_of(directory)
