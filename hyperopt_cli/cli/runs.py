"""`hyperopt runs`: which runs there are, and how they stand."""

from pathlib import Path
from typing import Annotated

import typer

from hyperopt_cli.cli.again import command
from hyperopt_cli.errors import UsageError

RUNS = Path("runs")


def runs(
    directory: Annotated[Path, typer.Argument(help="The folder that holds them.", metavar="DIR")] = RUNS,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a run, each on a line.")] = False,
) -> None:
    """List the runs in a folder, the newest first; one whose process is gone is `killed`.

    Example: hyperopt runs
    """
    from hyperopt_cli.run_directory.json_files import to_text
    from hyperopt_cli.run_directory.overview import as_json, runs_below, to_continue

    if not directory.is_dir() and directory != RUNS:
        raise UsageError(f"{directory} is not a directory; give one that holds runs, such as runs")
    rows = runs_below(directory)
    if json:
        for row in rows:
            typer.echo(to_text(as_json(row)))
        return
    if not rows:
        typer.echo(f"no run in {directory}; start one: {command('run', 'digits_lr')}")
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hyperopt_cli.cli.status import ago
    from hyperopt_cli.cli.tables import duration

    table = Table(box=None)
    for title in ("run", "mode", "state", "outer step", "best validation loss", "started", "took"):
        table.add_column(title, overflow="fold")
    for row in rows:
        state = f"{row.state} ({row.reason})" if row.reason else row.state
        best = None if row.best is None else f"{row.best:.5g}"
        took = None if row.wall_s is None else duration(row.wall_s)
        cells = (row.name, row.mode, state, row.outer_step, best, ago(row.age_s), took)
        table.add_row(*(Text("-" if cell in (None, "") else str(cell)) for cell in cells))

    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, 200))
    console.print(table)
    if (ended := to_continue(rows)) is not None:
        again = command("run", "--resume", ended.directory)
        console.print(f"\ncontinue the newest that was ended: {again}", highlight=False, markup=False, soft_wrap=True)
