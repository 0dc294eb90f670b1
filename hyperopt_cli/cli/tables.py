"""Tables and texts that show a run: its outer steps, and what was tuned, before and after."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from hyperopt_cli.run_directory.reading import Metrics
    from hyperopt_cli.run_directory.result import Result

MAX_ELEMENTS = 10
NEAR_ONE = 0.995  # from here on three digits would hide what a beta is
FEW_DIGITS = 2.0  # fewer of a hypergradient are told; products in bf16 leave 2.7


def number(value: float) -> str:
    """Returns the number with three significant digits; of one just below 1 those of its distance from 1.

    >>> number(0.99986), number(0.9)
    ('1 - 0.00014', '0.9')
    """
    return f"1 - {1 - value:.3g}" if NEAR_ONE < value < 1 else f"{value:.3g}"


def brief(value: Any) -> str:
    """Returns a number or a short list of numbers as text; a list of more than `MAX_ELEMENTS` becomes its range."""
    flat = list(_flat(value))
    if len(flat) > MAX_ELEMENTS:
        return f"{number(min(flat))} to {number(max(flat))} ({len(flat)} values)"
    return " ".join(map(number, flat))


def duration(seconds: float) -> str:
    """Returns the duration as text, in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def bias_line(bias: str) -> str:
    """Returns the line that says that the hypergradient is not exact, and why."""
    return f"the hypergradient is biased: {bias}"


def sources_lines(result: "Result") -> list[str]:
    """Returns a line for each time that a run was continued with other code of the user's than it had begun with."""
    return [
        f"measured with other code from outer step {each['outer_step']} on: {', '.join(each['files'])} changed"
        for each in result.sources_changed
    ]


def _flat(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for entry in value:
            yield from _flat(entry)
    else:
        yield value


def steps_table(metrics: Sequence["Metrics"]) -> Table:
    """Returns a table with one row for each outer step."""
    table = Table("outer step", "price", "validation loss", "training loss", "seconds", box=None)
    for line in metrics:
        price = "-" if line.price is None else f"{line.price:g}"
        losses = loss(line.validation_loss), loss(line.training_loss)
        table.add_row(str(line.outer_step), price, *losses, f"{line.wall_s:.1f}")
    return table


def loss(value: float) -> str:
    """Returns a loss with five digits, or that its run diverged."""
    return "diverged" if value == math.inf else f"{value:.5g}"


def outcome_table(result: "Result") -> Table:
    """Returns a table of what was tuned, before and after, and of the losses at both."""
    assert result.initial is not None
    assert result.best is not None
    table = Table("", "before", f"after ({result.best.label})", box=None)
    for name, before in result.initial.hyperparameters.items():
        table.add_row(name, brief(before), brief(result.best.hyperparameters[name]))
    table.add_row("validation loss", loss(result.initial.validation_loss), loss(result.best.validation_loss))
    if result.test is not None:
        before_test, after_test = result.test.initial, result.test.best
        table.add_row("test loss", loss(before_test.loss if before_test else math.inf), loss(after_test.loss))
        if after_test.accuracy is not None:
            was = "-" if before_test is None or before_test.accuracy is None else f"{before_test.accuracy:.2%}"
            table.add_row("test accuracy", was, f"{after_test.accuracy:.2%}")
    return table
