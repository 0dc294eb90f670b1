"""`hyperopt status`: what became of jobs."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.errors import UsageError

if TYPE_CHECKING:
    from hyperopt_cli.cluster.overview import Overview

HEADINGS = ("job", "element", "Slurm", "requeues", "run", "heartbeat", "outer step", "best validation loss")
HEADINGS = ("job", "element", "Slurm", "requeues", "run", "heartbeat", "outer step", "best validation loss")
JobName = Annotated[
    str, typer.Argument(help="The folder of a job or of one of its elements, or its number.", metavar="JOB|DIR")
]


def status(
    job: Annotated[
        str | None,
        typer.Argument(help="The folder of a job or of one of its elements, or its number.", metavar="JOB|DIR"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON list, an object a job.")] = False,
) -> None:
    """Show how submitted jobs stand, all of those below runs/ by default: by Slurm, and by the runs' own files.

    Example: hyperopt status 1234
    """
    from hyperopt_cli.cluster.job import find_jobs, select
    from hyperopt_cli.cluster.overview import overview
    from hyperopt_cli.run_directory.json_files import to_text

    names = [str(folder.root) for folder in find_jobs()]
    if job is None and not names and not json:
        raise UsageError("no job below runs/; submit one, such as hyperopt submit digits_lr, or name its folder")
    overviews = _readable(names) if job is None else iter([overview(select(job))])
    if json:
        jobs = []
        for selection, rows, note in overviews:
            fields = {"job_id": selection.job.job_id, "directory": str(selection.folder.root), "note": note}
            jobs.append({**fields, "submitted": selection.job.submitted, "elements": [row._asdict() for row in rows]})
        typer.echo(to_text(jobs))
        return
    _show(overviews)


def _readable(names: Iterable[str]) -> Iterator["Overview"]:
    """Yields the jobs that can be read, and prints of each other one why it cannot."""
    from hyperopt_cli.cluster.job import select
    from hyperopt_cli.cluster.overview import overview

    for name in names:
        try:
            yield overview(select(name))
        except UsageError as error:
            typer.echo(f"hyperopt: {error}", err=True)


def _show(overviews: Iterable["Overview"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, 200))
    for n, (selection, rows, note) in enumerate(overviews):
        title = f"{selection.folder.root}: job {selection.job.job_id or '-'}, submitted {selection.job.submitted}"
        console.print(("\n" if n else "") + title, highlight=False, markup=False, soft_wrap=True)
        table = Table(box=None)
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold")
        for row in rows:
            state = f"{row.slurm} ({row.reason})" if row.reason and row.slurm != "RUNNING" else row.slurm
            best = None if row.best is None else f"{row.best:.5g}"
            since = ago(row.heartbeat_s)
            cells = (row.job_id, row.element, state, row.requeues, row.run, since, row.outer_step, best)
            table.add_row(*(Text("-" if cell in (None, "") else str(cell)) for cell in cells))
        console.print(table)
        if note:
            console.print(note, highlight=False, markup=False, soft_wrap=True)


def ago(seconds: float | None) -> str:
    """Returns how long ago something was, in words."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
