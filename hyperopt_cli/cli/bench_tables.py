"""Tables of a benchmark's report, in Markdown, so that they can be pasted into a page."""

from collections.abc import Iterable, Sequence

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from hyperopt_cli.bench.machine import described
from hyperopt_cli.bench.measuring import Ratio
from hyperopt_cli.bench.report import Case, Figure, Report
from hyperopt_cli.byte_sizes import bytes_text
from hyperopt_cli.cli.comparison_table import PIPE_WIDTH
from hyperopt_cli.modes.planning.plan import seconds_text

MISSING = "-"


def print_report(report: Report) -> None:
    """Prints a line on the machine, then every table of the report."""
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, PIPE_WIDTH))
    console.print(
        f"{described(dict(report.machine))}; {report.settings['repeat']} rounds", highlight=False, markup=False
    )
    for case in report.cases:
        _print_case(console, case)
    for curves in report.curves:
        header = ["variant", *(f"{curves.over} = {x}" for x in curves.at)]
        _print(
            console, curves.title, header, ([name, *(_text("", y) for y in ys)] for name, ys in curves.lines.items())
        )
    for table in report.tables:
        keys = list(table.rows[0])
        _print(console, table.title, map(_words, keys), ([_text(key, row[key]) for key in keys] for row in table.rows))


def _print_case(console: Console, case: Case) -> None:
    """Prints the times of a case, where they go where that was measured, and what was not available."""
    keys = list(dict.fromkeys(key for variant in case.ran for key in variant.figures))
    header = ["variant", "median", "low to high", f"over {case.reference}", *map(_words, keys)]
    rows = []
    for variant in case.ran:
        timing, figures = variant.timing, (_text(key, variant.figures.get(key)) for key in keys)
        assert timing is not None
        low_high = f"{seconds_text(timing.low_s)} to {seconds_text(timing.high_s)}"
        over = _text("", variant.over_reference)
        rows.append([variant.name, seconds_text(timing.median_s), low_high, over, *figures])
    _print(console, case.title, header, rows)

    if case.pieces:
        rows = []
        for variant in case.ran:
            assert variant.timing is not None
            pieces = (_text("_s", variant.split_s.get(piece)) for piece in case.pieces)
            rows.append([variant.name, *pieces, f"{sum(variant.split_s.values()) / variant.timing.median_s:.2f}"])
        _print(console, f"{case.title}: where it goes", ["variant", *case.pieces, "sum over the whole"], rows)

    for variant in case.variants:
        if variant.reason is not None:
            console.print(f"{variant.name}: not available: {variant.reason}", highlight=False, markup=False)


def _print(console: Console, title: str, header: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    console.print(f"\n{title}\n", highlight=False, markup=False)
    table = Table(box=MARKDOWN)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _words(key: str) -> str:
    """Returns the name of a figure in words, without the unit that its values show."""
    return key.removesuffix("_s").removesuffix("_bytes").replace("_", " ")


def _text(key: str, value: Figure) -> str:
    if value is None:
        return MISSING
    if isinstance(value, Ratio):
        return f"{value.of_medians:.3g} ({value.low:.3g} to {value.high:.3g})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if key.endswith("_bytes"):
        return bytes_text(value)
    if key.endswith("_s"):
        return seconds_text(value)
    return str(value) if isinstance(value, int) else f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
