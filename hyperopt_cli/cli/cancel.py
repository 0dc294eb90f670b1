"""`hyperopt cancel`: end a job, saved."""

from typing import Annotated

import typer

from hyperopt_cli.cli.status import JobName


def cancel(
    job: JobName,
    wait: Annotated[
        float,
        typer.Option(min=0, help="How long runs may take to save before Slurm ends them.", metavar="SECONDS"),
    ] = 60.0,
) -> None:
    """Cancel a job, or one element of it; what runs is told to save first, and is not requeued.

    Example: hyperopt cancel 1234
    """
    from hyperopt_cli.cluster.cancel import cancel as cancel_job
    from hyperopt_cli.cluster.job import select

    selection = select(job)
    ended, forced = cancel_job(selection, wait)
    if not ended:
        typer.echo(f"nothing of {job} waits or runs; it will not be requeued")
        return
    typer.echo(f"cancelled: {', '.join(element.name for element in ended)}")
    if forced:
        names = ", ".join(element.name for element in forced)
        typer.echo(f"still saving after {wait:g} s, and ended by Slurm: {names}")
