"""What became of a job: how Slurm sees each element, and what its run says of itself."""

import math
from datetime import UTC, datetime
from typing import NamedTuple

from hyperopt_cli.cluster import slurm
from hyperopt_cli.cluster.array import Element
from hyperopt_cli.cluster.job import Job, JobFolder, Selection
from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.reading import read_metrics
from hyperopt_cli.run_directory.status import read_status, state_of


class Row(NamedTuple):
    """How one element of a job stands.

    Attributes:
        job_id: what Slurm calls it.
        element: its name.
        slurm: Slurm's state; empty where Slurm is not here or has forgotten it.
        reason: Slurm's reason for it.
        requeues: how often it was requeued; None where Slurm doesn't say.
        run: the run's own state; empty before it has begun, `cancelled` if it never will.
        heartbeat_s: how long ago it gave a sign of life.
        outer_step: where it stands.
        best: the lowest validation loss so far.
    """

    job_id: str
    element: str
    slurm: str = ""
    reason: str = ""
    requeues: int | None = None
    run: str = ""
    heartbeat_s: float | None = None
    outer_step: int | None = None
    best: float | None = None


class Overview(NamedTuple):
    """A job as it stands.

    Attributes:
        selection: the job.
        rows: its elements.
        note: why Slurm has not been asked; empty if it has.
    """

    selection: Selection
    rows: tuple[Row, ...]
    note: str


def overview(selection: Selection) -> Overview:
    """Returns how the selected elements stand, by Slurm where it answers, and by their own files.

    Raises:
        UsageError: a file of a run is damaged.
    """
    folder, job, elements = selection
    states, note = _slurm_states(job)
    return Overview(selection, tuple(_row(folder, job, each, states.get(each.task)) for each in elements), note)


def live(selection: Selection) -> list[Element]:
    """Returns the selected elements that run or may still run.

    Without Slurm, or before the job is submitted, these are the ones whose own files say that they run.
    """
    folder, job, elements = selection
    if not slurm.is_here() or job.job_id is None:
        return [element for element in elements if _runs(folder.run(element))]
    states = slurm.states(job.job_id)
    return [element for element in elements if element.task in states and states[element.task].is_live]


def _runs(run: RunDirectory) -> bool:
    return run.status.is_file() and state_of(run) == "running"


def _slurm_states(job: Job) -> tuple[dict[int, slurm.State], str]:
    if job.job_id is None:
        return {}, "it was never submitted"
    if not slurm.is_here():
        return {}, "no Slurm here: this is what the runs say themselves"
    try:
        return slurm.states(job.job_id), ""
    except UsageError as error:
        return {}, f"{error}; this is what the runs say themselves"


def _row(folder: JobFolder, job: Job, element: Element, state: slurm.State | None) -> Row:
    row = _own(Row(job.id_of(element), element.name), folder.run(element))
    if not row.run and folder.cancelled(element).exists():
        row = row._replace(run="cancelled")  # Slurm forgets an element that never began
    return row if state is None else row._replace(slurm=state.name, reason=state.reason, requeues=state.restarts)


def _own(row: Row, run: RunDirectory) -> Row:
    """Returns the row with what the run's own files say of it."""
    if not run.status.is_file():
        return row
    status = read_status(run)
    silence = datetime.now(UTC) - datetime.fromisoformat(status["heartbeat"])
    losses = [step.validation_loss for step in read_metrics(run.metrics)]
    return row._replace(
        run=state_of(run),
        heartbeat_s=max(0.0, silence.total_seconds()),
        outer_step=status.get("outer_step"),
        best=min(filter(math.isfinite, losses), default=None),
    )
