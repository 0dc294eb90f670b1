"""The table of a comparison: what each mode cost and whether it agrees, and the hypergradient in each of them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hyperopt_cli.cli.tables import FEW_DIGITS
from hyperopt_cli.comparison import Comparison
from hyperopt_cli.comparison.difference import Difference

# Without a terminal nobody sees the lines break: as wide as the tables need.
PIPE_WIDTH = 200
MAX_ELEMENTS = 10
MISSING = "-"
AGAINST = "against float32"
BEFORE_AGAINST = ("mode", "validation loss", "difference", "passes")
BEHIND_AGAINST = ("seconds", "memory taken", "gradients", "HVPs", "bits a parameter", "result")


def print_comparison(comparison: Comparison) -> None:
    """Prints both tables, and the notes that belong to them."""
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, PIPE_WIDTH))
    title = f"one hypergradient over {comparison.steps} steps in {comparison.precision}, in each mode"
    console.print(title, highlight=False)
    header, *rows = cost_rows(comparison)
    console.print(_table(header, rows, ("mode", "result")))
    header, *rows = hypergradient_rows(comparison)
    if rows:
        console.print("\nhypergradient")
        console.print(_table(header, rows, ("",)))
    for note in notes(comparison):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str]) -> Table:
    table = Table(box=None)
    for title in header:
        table.add_column(title, justify="left" if title in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def cost_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Returns the titles, then a row for each mode; differences are the largest of any hyperparameter's derivative.

    `AGAINST` is a column where the precision is lower than float32.
    """
    lowered = any(each.against_float32 is not None for each in comparison.modes)
    rows = [(*BEFORE_AGAINST, *([AGAINST] if lowered else []), *BEHIND_AGAINST)]
    for each in comparison.modes:
        is_reference = each.difference is not None and each.mode == comparison.reference
        cost: tuple[str, ...] = (MISSING,) * (len(BEHIND_AGAINST) - 1)
        if each.cost is not None:
            bits = each.cost.bits_per_parameter
            cost = (
                f"{each.cost.wall_s:.2f}",
                f"{each.cost.taken_bytes / 2**20:,.0f} MiB",
                str(each.cost.num_gradients),
                str(each.cost.num_hvps),
                MISSING if bits is None else f"{bits:.3g}",
            )
        rows.append(
            (
                each.mode,
                MISSING if each.validation_loss is None else f"{each.validation_loss:.6g}",
                "reference" if is_reference else _largest(each.difference),
                MISSING if each.tolerance is None or is_reference else f"{each.tolerance:g}",
                *([_largest(each.against_float32)] if lowered else []),
                *cost,
                each.status,
            )
        )
    return rows


def _largest(difference: Difference | None) -> str:
    return MISSING if difference is None else f"{difference.largest:.2g}"


def hypergradient_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Returns the titles (the modes that ran), then a row for each number; of a large array the row holds its norm."""
    ran = [each for each in comparison.modes if each.hypergradient]
    columns = []
    for each in ran:
        column = {}
        for name, values in (each.hypergradient or {}).items():
            numbers = dict(_elements(values, ()))
            if len(numbers) > MAX_ELEMENTS:
                column[f"norm of {name} ({len(numbers)} values)"] = f"{math.hypot(*numbers.values()):.6g}"
            else:
                column |= {f"{name}{list(at) if at else ''}": f"{number:.6g}" for at, number in numbers.items()}
        columns.append(column)
    titles = [f"{each.mode} (biased)" if each.status == "biased" else each.mode for each in ran]
    labels = columns[0] if columns else {}
    return [("", *titles), *((label, *(column[label] for column in columns)) for label in labels)]


def _elements(values: Any, index: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yields every number of nested lists, with its index."""
    if not isinstance(values, list):
        yield index, values
        return
    for i, value in enumerate(values):
        yield from _elements(value, (*index, i))


def notes(comparison: Comparison) -> list[str]:
    """Returns what the tables do not say: the rational factors, and why a mode is biased or has no result."""
    notes = []
    if comparison.factors is not None:
        in_use = []
        for label, entries in comparison.factors.in_use.items():
            first = entries[0].factor
            shown = first if isinstance(first, str) else "by parameter"
            in_use.append(f"{label} {shown}{' at first' if len(entries) > 1 else ''}")
        moved = [
            f"{name} is {x.used:.10g} instead of {x.written:.10g} (step {x.step})"
            for name, x in comparison.factors.moved.items()
        ]
        notes.append(
            f"every mode ran at the rational factors of reversible mode ({', '.join(in_use)}): "
            f"{'; '.join(moved) or 'the values are those of the recipe'}"
        )
    for each in comparison.modes:
        if each.reason is not None:
            notes.append(f"{each.mode}: {each.status}: {each.reason}")
        if each.digits is not None and each.digits < FEW_DIGITS:
            notes.append(f"{each.mode}: its hypergradient has {each.digits:.1f} digits")
    if comparison.reference is None:
        notes.append("no exact mode ran: there is nothing to compare with")
    elif sum(each.cost is not None for each in comparison.modes) == 1:
        notes.append("one mode ran: nothing was compared")
    return notes
