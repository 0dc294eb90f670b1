"""`hyperopt show`: what came out of a run."""

from pathlib import Path
from typing import Annotated

import typer

from hyperopt_cli.errors import UsageError


def show(directory: Annotated[Path, typer.Argument(help="The directory of a run.", metavar="DIR")]) -> None:
    """Show a run: its state, its outer steps, what was tuned."""
    from rich.console import Console

    from hyperopt_cli.cli.tables import outcome_table, steps_table
    from hyperopt_cli.runs.reading import read

    run = read(directory)
    if not run.metrics:
        raise UsageError(f"{directory}: {run.state}, and no outer step was measured yet")
    console = Console()
    console.print(f"{directory}: {run.state}")
    console.print(steps_table(run.metrics))
    if run.result is not None:
        console.print(outcome_table(run.result))
