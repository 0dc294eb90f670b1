"""What became of a job: how Slurm sees each element, and what its run says of itself."""

import math
from datetime import UTC, datetime
from typing import NamedTuple

from hyperopt_cli.cluster import slurm
from hyperopt_cli.cluster.array import Element
from hyperopt_cli.cluster.job import Job, JobFolder, Selection
from hyperopt_cli.errors import UsageError
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
    states: dict[int, slurm.State] = {}
    note = ""
    if job.job_id is None:
        note = "it was never submitted"
    elif not slurm.is_here():
        note = "no Slurm here: this is what the runs say themselves"
    else:
        try:
            states = slurm.states(job.job_id)
        except UsageError as error:
            note = f"{error}; this is what the runs say themselves"
    return Overview(selection, tuple(_row(folder, job, each, states.get(each.task)) for each in elements), note)


def live(selection: Selection) -> list[Element]:
    """Returns the selected elements that run or may still run.

    Without Slurm, or before the job is submitted, these are the ones whose own files say that they run.
    """
    folder, job, elements = selection
    if not slurm.is_here() or job.job_id is None:
        runs = [(element, folder.run(element)) for element in elements]
        return [element for element, run in runs if run.status.is_file() and state_of(run) == "running"]
    states = slurm.states(job.job_id)
    return [element for element in elements if element.task in states and states[element.task].is_live]


def _row(folder: JobFolder, job: Job, element: Element, state: slurm.State | None) -> Row:
    """Returns how an element stands, by its run's own files and by what Slurm says of it."""
    row, run = Row(job.id_of(element), element.name), folder.run(element)
    if run.status.is_file():
        status = read_status(run)
        silence = datetime.now(UTC) - datetime.fromisoformat(status["heartbeat"])
        losses = [step.validation_loss for step in read_metrics(run.metrics)]
        row = row._replace(
            run=state_of(run),
            heartbeat_s=max(0.0, silence.total_seconds()),
            outer_step=status.get("outer_step"),
            best=min(filter(math.isfinite, losses), default=None),
        )
    elif folder.cancelled(element).exists():
        row = row._replace(run="cancelled")  # Slurm forgets an element that never began
    return row if state is None else row._replace(slurm=state.name, reason=state.reason, requeues=state.restarts)
