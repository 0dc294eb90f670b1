"""The picture of a report."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from hyperopt_cli.bench.drawing import figure, save
from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.measuring import Ratio, Timing
from hyperopt_cli.bench.report import Case, Curves, Report, Settings, Variant

SLOW = Variant("slow", Timing.of([2.0, 3.0, 4.0]), Ratio(2.0, 1.5, 2.5))
ABSENT = Variant("absent", None, reason="not here")
SPLIT = Variant("split", Timing.of([1.0, 1.5, 2.0]), split_s={"there": 0.5, "back": 0.75})


def drawn(*variants: Variant) -> Report:
    return Report("reversal", machine(Settings().device), {"repeat": 3}, (Case("a case", "split", variants),))


def test_bars_are_the_medians_and_what_is_absent_has_none() -> None:
    (axes,) = figure(drawn(SLOW, ABSENT, Variant("quick", Timing.of([1.0, 1.5, 2.0])))).axes
    assert [patch.get_width() for patch in axes.patches] == [3.0, 1.5]  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["slow", "quick"]
    assert axes.get_title(loc="left") == "a case"
    assert any("2.00x" in text.get_text() for text in axes.texts)


def test_a_split_is_stacked() -> None:
    (axes,) = figure(drawn(SPLIT)).axes
    assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [(0.0, 0.5), (0.5, 0.75)]  # type: ignore[attr-defined]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["there", "back"]


def test_pieces_stand_in_the_order_of_the_variant_that_has_most() -> None:
    more = Variant("more", Timing.of([1.0]), split_s={"there": 0.3, "between": 0.3, "back": 0.3})
    (case,) = drawn(SPLIT, ABSENT, more).cases
    assert case.pieces == ("there", "between", "back")
    assert case.ran == (SPLIT, more)


def test_curves_are_drawn_in_the_place_of_cases_with_a_gap_where_there_is_no_figure() -> None:
    curves = Curves("a cost", "K", (1, 2, 8), {"quick": (1.0, 2.0, 3.0), "refused": (4.0, None, 5.0)})
    (axes,) = figure(replace(drawn(SLOW), curves=(curves,))).axes
    quick, refused = axes.get_lines()
    assert list(quick.get_xdata()) == [1, 2, 8]  # type: ignore[arg-type]
    assert list(quick.get_ydata()) == [1.0, 2.0, 3.0]  # type: ignore[arg-type]
    assert [math.isnan(y) for y in refused.get_ydata()] == [False, True, False]  # type: ignore[arg-type, union-attr]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["quick", "refused"]


@pytest.mark.parametrize(("name", "begins"), [("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")])
def test_the_end_of_the_name_says_the_format(tmp_path: Path, name: str, begins: bytes) -> None:
    save(drawn(SLOW, SPLIT), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
