"""Ending a job so that its runs save: first they are asked to, and only then the job is cancelled.

`scancel` alone leaves a run KillWait seconds (30 by default) to write its checkpoint. TERM to the run alone leaves it
the time that it needs; a mark in the job's folder keeps the script from requeueing it.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from hyperopt_cli.cluster import slurm
from hyperopt_cli.cluster.array import Element
from hyperopt_cli.cluster.job import Selection
from hyperopt_cli.cluster.overview import live
from hyperopt_cli.errors import UsageError

POLL_S = 1.0


class Cancelled(NamedTuple):
    """What `cancel` has done.

    Attributes:
        ended: elements that had waited or run, and no longer do.
        forced: those of them that did not stop in time, and were cancelled by Slurm.
    """

    ended: list[Element]
    forced: list[Element]


def cancel(selection: Selection, wait_s: float, sleep: Callable[[float], None] = time.sleep) -> Cancelled:
    """Cancels the selected elements; those that run may save first.

    Args:
        selection: the elements to cancel.
        wait_s: how long runs may take to stop by themselves; 0 leaves them Slurm's own KillWait.
        sleep: waits for that many seconds.

    Raises:
        UsageError: the job was never submitted, or there is no Slurm here.
    """
    folder, job, elements = selection
    if job.job_id is None:
        raise UsageError(f"the job in {folder.root} was never submitted; there is nothing to cancel")
    if not slurm.is_here():
        raise UsageError("no squeue here; cancel the job where jobs are submitted from")
    states = slurm.states(job.job_id)
    begun = [element for element in elements if element.task in states and states[element.task].is_live]
    for element in elements:
        mark = folder.cancelled(element)
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    waiting = [job.id_of(element) for element in begun if states[element.task].waits]
    running = [job.id_of(element) for element in begun if not states[element.task].waits]
    if waiting:
        slurm.cancel(waiting)
    if running:
        slurm.ask_to_stop(running)
    end = time.monotonic() + wait_s
    left = live(selection)
    while left and time.monotonic() < end:
        sleep(POLL_S)
        left = live(selection)
    if left:
        slurm.cancel([job.id_of(element) for element in left])
    return Cancelled(begun, left)
