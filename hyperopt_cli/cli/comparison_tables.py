"""Tables of a comparison: what each mode cost and whether it agrees, and the hypergradient in each of them."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from hyperopt_cli.run_directory.compared import Comparison
from hyperopt_cli.run_directory.comparison_rows import cost_header, cost_rows, hypergradient_rows, notes

# Without a terminal nobody sees the lines break: as wide as the tables need.
PIPE_WIDTH = 200


def print_comparison(comparison: Comparison) -> None:
    """Both tables, and what has to be said beside them."""
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, PIPE_WIDTH))
    console.print(_title(comparison), highlight=False)
    console.print(_table(cost_header(comparison), cost_rows(comparison), ("mode", "result")))
    header, *rows = hypergradient_rows(comparison)
    if rows:
        console.print("\nhypergradient")
        console.print(_table(header, rows, ("",)))
    for note in notes(comparison):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _title(comparison: Comparison) -> str:
    return f"one hypergradient over {comparison.steps} steps in {comparison.precision}, in each mode"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str]) -> Table:
    table = Table(box=None)
    for title in header:
        table.add_column(title, justify="left" if title in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
