"""From a script to a job in Slurm's queue."""

import shutil
from collections.abc import Sequence
from typing import NamedTuple

from hyperopt_cli.cluster import slurm
from hyperopt_cli.cluster.array import Element
from hyperopt_cli.cluster.job import Job, JobFolder


class Submission(NamedTuple):
    """A job that Slurm has taken.

    Attributes:
        job: the job, with its number.
        expected: when and where it would start, in Slurm's words.
    """

    job: Job
    expected: str


def submit(job: Job, folder: JobFolder, script: str, recipes: Sequence[tuple[Element, str]]) -> Submission:
    """Asks Slurm whether it would take the job, makes its folder, and submits it.

    Args:
        job: the job, which has no number yet.
        folder: the folder to make; it is removed again if Slurm refuses the job after all.
        script: the text of the script for sbatch.
        recipes: the text of each element's recipe.

    Raises:
        UsageError: there is no Slurm here, it refuses the job, or the folder can't be made.
    """
    expected = slurm.test(script)
    folder.create(script, recipes)
    try:
        job.write(folder)
        job = job._replace(job_id=slurm.submit(folder.script))
    except BaseException:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise
    job.write(folder)
    return Submission(job, expected)
