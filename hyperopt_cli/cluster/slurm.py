"""Slurm's commands: sbatch, squeue, scontrol and scancel, and the reading of what they print.

There is no sacct where a cluster keeps no accounts, and squeue forgets a job some minutes after its end; what became of
a run after that is told by its own files.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hyperopt_cli.errors import Remedy, UsageError

TIMEOUT_S = 60
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "STOPPED", "SUSPENDED", "SIGNALING", "STAGE_OUT", "RESIZING")

_FORMAT = "%K|%T|%r"  # task of the array, state, reason
_UNKNOWN_JOB = "Invalid job id specified"


class State(NamedTuple):
    """How Slurm sees an element.

    Attributes:
        name: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, PREEMPTED and so on.
        reason: why it waits, or why it ended, in Slurm's words; empty where there is none.
        restarts: how often it was requeued; None where Slurm doesn't say.
    """

    name: str
    reason: str = ""
    restarts: int | None = None

    @property
    def waits(self) -> bool:
        """Whether it has not begun, or waits to begin again."""
        return self.name in WAITING

    @property
    def is_live(self) -> bool:
        """Whether it runs or may still run."""
        return self.waits or self.name in RUNNING


def is_here() -> bool:
    """Returns whether this machine can ask a Slurm about jobs."""
    return shutil.which("squeue") is not None


def test(script: str) -> str:
    """Asks Slurm whether it could ever run a script; a job of an impossible size would wait for ever.

    Returns:
        What Slurm expects: when and where.

    Raises:
        UsageError: there is no Slurm here, or it never could; its own words say why.
    """
    done = _run("sbatch", "--test-only", stdin=script)
    if done.returncode != 0:
        raise UsageError(f"Slurm would not take this job: {_said(done)}; nothing was submitted")
    return _said(done)


def submit(script: Path) -> str:
    """Submits a script.

    Returns:
        The job's number.

    Raises:
        UsageError: Slurm refuses it, with its own words.
    """
    done = _run("sbatch", "--parsable", str(script.absolute()))
    match = re.match(r"(\d+)(;|\s|$)", done.stdout)
    if done.returncode != 0 or match is None:
        raise UsageError(f"Slurm has not taken the job: {_said(done)}")
    return match[1]


def states(job_id: str) -> dict[int, State]:
    """Returns the state of each element by task (0 where there is no array); empty if Slurm has forgotten the job.

    Raises:
        UsageError: there is no Slurm here, or it doesn't answer.
    """
    asked = ("--noheader", "--array", "--states=all", f"--jobs={job_id}", f"--format={_FORMAT}")
    done = _run("squeue", *asked)
    if done.returncode != 0 and _UNKNOWN_JOB not in done.stderr:
        raise UsageError(f"Slurm can't say what became of job {job_id}: {_said(done)}")

    # How often each element was requeued; those that still wait together in one record have not been.
    restarts = {}
    for line in _run("scontrol", "show", "job", "-o", job_id).stdout.splitlines():
        task, times = re.search(r"\bArrayTaskId=(\d+)\b", line), re.search(r"\bRestarts=(\d+)\b", line)
        if times is not None:
            restarts[int(task[1]) if task else 0] = int(times[1])

    found = {}
    for line in done.stdout.splitlines():
        index, name, reason = line.strip().split("|", 2)
        n = int(index) if index.isdecimal() else 0
        found[n] = State(name, "" if reason == "None" else reason, restarts.get(n))
    return found


def ask_to_stop(ids: Sequence[str]) -> None:
    """Sends TERM to the runs of jobs or elements, not to their scripts.

    Raises:
        UsageError: there is no Slurm here.
    """
    _run("scancel", "--signal=TERM", "--state=RUNNING", *ids)  # one that has just ended is no mistake


def cancel(ids: Sequence[str]) -> None:
    """Ends jobs or elements.

    `--state=PENDING` would spare those that have just begun; but on one element of an array that waits as a whole, it
    cancels the whole array (22.05).

    Raises:
        UsageError: there is no Slurm here, or it refuses.
    """
    done = _run("scancel", *ids)
    if done.returncode != 0 and _UNKNOWN_JOB not in done.stderr:
        raise UsageError(f"Slurm has not cancelled {' '.join(ids)}: {_said(done)}")


def _run(program: str, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    # Within another job its variables would be taken for options, and handed on to the new one.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    try:
        return subprocess.run(
            [program, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, env=inherited
        )
    except FileNotFoundError:
        raise UsageError(
            f"no {program} here; call this where jobs are submitted from"
            + (", or see the script alone" if program == "sbatch" else "")
        ).remedied(*([Remedy("to see the script", ("--dry-run",))] if program == "sbatch" else ())) from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{program} has not answered for {TIMEOUT_S} s; try again when Slurm does") from None


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """Returns what a command has printed, in one line and without its own name."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    plain = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) if line.startswith("s") else line for line in lines]
    return "; ".join(line.strip() for line in plain if line.strip()) or f"exit code {done.returncode}, without a word"
