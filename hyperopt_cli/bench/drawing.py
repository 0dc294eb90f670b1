"""Draws a report: a bar for each variant, its median with the extremes and its pieces; or curves."""

import math
from collections.abc import Mapping
from pathlib import Path

from hyperopt_cli.bench.machine import described
from hyperopt_cli.bench.report import Case, Curves, Report
from hyperopt_cli.errors import needing

with needing("a picture"):
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure


def save(report: Report, path: Path) -> None:
    """Writes the picture of a report to `path`, whose suffix decides the format."""
    figure(report).savefig(path)


def figure(report: Report) -> Figure:
    """Returns a figure with a panel for each case, or for each set of curves where the report has any.

    It is drawn on the Agg canvas: no window is opened, and pyplot does not know of it.
    """
    shown: tuple[Case | Curves, ...] = report.curves or report.cases
    names = dict.fromkeys(name for curves in report.curves for name in curves.lines)
    colours = {name: colormaps["tab20"](2 * i % 20 + 2 * i // 20) for i, name in enumerate(names)}
    rows = [9 if isinstance(panel, Curves) else 1 + len(panel.variants) for panel in shown]
    drawn = Figure(figsize=(8.5, 0.6 + 0.45 * sum(rows) + 0.6 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(drawn)
    panels = drawn.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": rows})[:, 0]
    for axes, panel in zip(panels, shown, strict=True):
        _draw_curves(axes, panel, colours) if isinstance(panel, Curves) else _draw(axes, panel)
    drawn.suptitle(f"{report.benchmark}: {described(dict(report.machine))}", fontsize="small", wrap=True)
    return drawn


def _draw(axes: Axes, case: Case) -> None:
    """Draws a bar for each variant, divided into its pieces where these were measured, and its extremes over it."""
    rows = range(len(case.ran))
    left = [0.0] * len(rows)
    for i, piece in enumerate(case.pieces):
        widths = [variant.split_s.get(piece, 0.0) for variant in case.ran]
        axes.barh(rows, widths, left=left, label=piece, color=colormaps["tab20"](2 * i + 1))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    if case.pieces:
        axes.legend(
            fontsize="x-small", frameon=False, loc="upper right", ncols=len(case.pieces), bbox_to_anchor=(1, 1.25)
        )
    else:
        axes.barh(rows, [variant.timing.median_s for variant in case.ran if variant.timing], color="tab:blue")

    ends = []
    for y, variant in enumerate(case.ran):
        assert variant.timing is not None
        low, median, high = variant.timing.low_s, variant.timing.median_s, variant.timing.high_s
        axes.errorbar([median], [y], xerr=[[median - low], [high - median]], color="0.2", capsize=3)
        ends.append(max(high, sum(variant.split_s.values())))
        over = "" if variant.over_reference is None else f"  {variant.over_reference.of_medians:.2f}x"
        axes.annotate(f" {median:.3g} s{over}", (ends[-1], y), va="center", fontsize="small")
    axes.set_yticks(rows, [variant.name for variant in case.ran])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(ends))
    axes.set_xlabel("seconds, median and extremes", fontsize="small")
    axes.set_title(case.title, fontsize="medium", loc="left")


def _draw_curves(axes: Axes, curves: Curves, colours: Mapping[str, tuple[float, float, float, float]]) -> None:
    for name, ys in curves.lines.items():
        heights = [math.nan if y is None else y for y in ys]
        axes.plot(curves.at, heights, marker="o", markersize=3, label=name, color=colours[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks(curves.at, [str(x) for x in curves.at])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(curves.over, fontsize="small")
    axes.set_title(curves.title, fontsize="small", loc="left")
    axes.legend(fontsize="x-small", frameon=False)
