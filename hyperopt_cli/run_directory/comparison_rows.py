"""A comparison as rows of text: for the terminal, and for TensorBoard's text page."""

import math
from collections.abc import Iterator

from hyperopt_cli.run_directory.compared import CommonFactors, Compared, Comparison, Difference, FactorFrom
from hyperopt_cli.run_directory.result import Values

MAX_ELEMENTS = 10
MISSING = "-"

COST_HEADER = (
    "mode",
    "validation loss",
    "difference",
    "passes",
    "seconds",
    "memory taken",
    "gradients",
    "HVPs",
    "bits a parameter",
    "result",
)


AGAINST = "against float32"
AGAINST_AT = COST_HEADER.index("passes") + 1


def cost_header(comparison: Comparison) -> tuple[str, ...]:
    """`COST_HEADER`, with `AGAINST` where the precision is lower than float32."""
    return _with_against(COST_HEADER, AGAINST) if _is_lowered(comparison) else COST_HEADER


def cost_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Under `cost_header`, one row a mode; differences are the largest of any hyperparameter's derivative."""
    rows = [_cost_row(each, comparison.reference) for each in comparison.modes]
    if not _is_lowered(comparison):
        return rows
    return [
        _with_against(row, _largest(each.against_float32)) for row, each in zip(rows, comparison.modes, strict=True)
    ]


def _is_lowered(comparison: Comparison) -> bool:
    return any(each.against_float32 is not None for each in comparison.modes)


def _with_against(row: tuple[str, ...], cell: str) -> tuple[str, ...]:
    return (*row[:AGAINST_AT], cell, *row[AGAINST_AT:])


def _largest(difference: Difference | None) -> str:
    return MISSING if difference is None else f"{max(difference.hypergradient.values()):.2g}"


def hypergradient_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The modes that ran, then a row for each number of the hypergradient; the norm for an array of many."""
    ran = [each for each in comparison.modes if each.hypergradient]
    columns = {titled(each): dict(_entries(each.hypergradient or {})) for each in ran}
    labels = dict.fromkeys(label for column in columns.values() for label in column)
    return [("", *columns), *((label, *(column[label] for column in columns.values())) for label in labels)]


def titled(each: Compared) -> str:
    """The mode, marked where it is biased."""
    return f"{each.mode} (biased)" if each.status == "biased" else each.mode


def notes(comparison: Comparison) -> list[str]:
    """What has to be said beside the tables: at which factors, why a mode is biased or has no result."""
    said = [] if comparison.factors is None else [_factor_note(comparison.factors)]
    said += [f"{each.mode}: {each.status}: {each.reason}" for each in comparison.modes if each.reason is not None]
    if comparison.reference is None:
        said.append("no exact mode ran: there is nothing to compare with")
    elif sum(each.cost is not None for each in comparison.modes) == 1:
        said.append("one mode ran: nothing was compared")
    return said


def _factor_note(factors: CommonFactors) -> str:
    in_use = ", ".join(f"{label} {_factor(entries)}" for label, entries in factors.in_use.items())
    moved = [
        f"{name} is {x.used:.10g} instead of {x.written:.10g} (step {x.step})" for name, x in factors.moved.items()
    ]
    return (
        f"every mode ran at the rational factors of reversible mode ({in_use}): "
        f"{'; '.join(moved) or 'the values are those of the recipe'}"
    )


def _factor(entries: list[FactorFrom]) -> str:
    """The first, and whether there are more."""
    first = entries[0].factor
    shown = first if isinstance(first, str) else "by parameter"
    return shown if len(entries) == 1 else f"{shown} at first"


def elements(name: str, values: Values) -> list[tuple[str, float]]:
    """Every number of `values` with its label: `lr`, `lr[0]`, `lr[0, 1]`."""
    indexed = list(_indexed(values, ()))
    return [(f"{name}[{', '.join(map(str, index))}]" if index else name, number) for index, number in indexed]


def _indexed(values: Values, index: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
    if not isinstance(values, list):
        yield index, values
        return
    for i, value in enumerate(values):
        yield from _indexed(value, (*index, i))


def _entries(hypergradient: dict[str, Values]) -> Iterator[tuple[str, str]]:
    for name, values in hypergradient.items():
        labelled = elements(name, values)
        if len(labelled) > MAX_ELEMENTS:
            yield f"norm of {name} ({len(labelled)} values)", f"{math.hypot(*(x for _, x in labelled)):.6g}"
        else:
            yield from ((label, f"{number:.6g}") for label, number in labelled)


def _cost_row(each: Compared, reference: str | None) -> tuple[str, ...]:
    if each.cost is None:
        return (each.mode, *[MISSING] * (len(COST_HEADER) - 2), each.status)
    assert each.validation_loss is not None
    bits = each.cost.bits_per_parameter
    return (
        each.mode,
        f"{each.validation_loss:.6g}",
        "reference" if each.difference is not None and each.mode == reference else _largest(each.difference),
        MISSING if each.tolerance is None or each.mode == reference else f"{each.tolerance:g}",
        f"{each.cost.wall_s:.2f}",
        f"{each.cost.taken_bytes / 2**20:,.0f} MiB",
        str(each.cost.num_gradients),
        str(each.cost.num_hvps),
        MISSING if bits is None else f"{bits:.3g}",
        each.status,
    )
