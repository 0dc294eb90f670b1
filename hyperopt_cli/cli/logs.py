"""`hyperopt logs`: what a job prints."""

from typing import Annotated

import typer

from hyperopt_cli.errors import UsageError


def logs(
    job: Annotated[
        str | None,
        typer.Argument(help="The folder of a job or of one of its elements, or its number.", metavar="JOB|DIR"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what a job printed, the newest below runs/ by default; of all elements of an array, or of one.

    Example: hyperopt logs -f 1234_0
    """
    from hyperopt_cli.cluster.job import find_jobs, select
    from hyperopt_cli.cluster.output import follow as follow_files
    from hyperopt_cli.cluster.output import pieces
    from hyperopt_cli.cluster.overview import live, overview

    newest = find_jobs()[-1:]
    if job is None and not newest:
        raise UsageError("no job below runs/; submit one, such as hyperopt submit digits_lr, or name its folder")
    selection = select(job if job is not None else str(newest[0].root))
    files = [selection.folder.output(element) for element in selection.elements]
    last = None
    for n, text in follow_files(files, lambda: bool(live(selection))) if follow else pieces(files):
        if n != last and len(files) > 1:
            typer.echo(f"==> {selection.elements[n].name} <==")
        last = n
        typer.echo(text, nl=False)
    if last is None:
        _, rows, note = overview(selection)
        states = sorted({f"{row.slurm} ({row.reason})" if row.reason else row.slurm for row in rows if row.slurm})
        why = note or ", ".join(states) or "Slurm does not know the job any more"
        typer.echo(f"nothing was printed yet: {why}", err=True)
