"""`hyperopt show`: what came out of a run."""

from pathlib import Path
from typing import Annotated

import typer


def show(directory: Annotated[Path, typer.Argument(help="The directory of a run.", metavar="DIR")]) -> None:
    """Show a run (its state, its outer steps, what was tuned)."""
    from rich.console import Console

    from hyperopt_cli.cli.tables import bias_line, outcome_table, sources_lines, steps_table, training_table
    from hyperopt_cli.run_directory.directory import TRAIN, RunDirectory
    from hyperopt_cli.run_directory.reading import read
    from hyperopt_cli.run_directory.status import read_status, state_of
    from hyperopt_cli.run_directory.trained import read_trained

    opened, console = RunDirectory.open(directory), Console()
    status, state = read_status(opened), state_of(opened)
    reason = status.get("reason")
    console.print(f"{directory}: {state}" + (f" ({reason})" if reason else ""), highlight=False, soft_wrap=True)
    if status.get("mode") == TRAIN:
        trained = read_trained(opened.metrics)
        console.print(training_table(trained) if trained else "no training run has ended")
        return
    run = read(directory)
    if not run.metrics:
        console.print("no outer step was measured")
        return
    if run.metrics[0].bias is not None:
        console.print(bias_line(run.metrics[0].bias), highlight=False, soft_wrap=True)
    console.print(steps_table(run.metrics))
    if run.result is not None and run.result.best is not None:
        console.print(outcome_table(run.result))
        for line in sources_lines(run.result):
            console.print(line, highlight=False, soft_wrap=True)
