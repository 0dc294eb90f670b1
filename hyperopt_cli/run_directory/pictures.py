"""The picture of a learned schedule: one optimizer argument over the inner steps, at the start and now."""

import numpy as np
from torch import Tensor

from hyperopt_cli.errors import needing

with needing("the picture of a schedule in a run's log"):
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

# Up to here each group of parameters has its line in the legend; beyond, a colour bar would say no more than the lines.
NAMED_GROUPS = 8
# Values that spread over more than this factor are drawn on a logarithmic axis.
LOG_SPREAD = 20.0


def schedule_figure(name: str, start: Tensor, now: Tensor, start_label: str, now_label: str) -> Figure:
    """Draws `now` in colour over `start` in grey.

    Args:
        name: the optimizer's argument, e.g. `lr`.
        start: the values at the start, [T] or [T, groups].
        now: the values now, of the same shape.
        start_label: what the grey lines are.
        now_label: what the coloured ones are.

    Returns:
        A figure on the Agg canvas; no window is opened, and pyplot does not know of it.
    """
    figure = Figure(figsize=(4.2, 3.0), dpi=120, layout="constrained")  # legible in a card of 350 pixels
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    before, after = _columns(start), _columns(now)
    axes.plot(before, color="0.65", linewidth=1.2, label=[start_label] + ["_"] * (before.shape[1] - 1))
    groups = after.shape[1]
    if groups == 1:
        axes.plot(after, color="tab:blue", linewidth=1.8, label=now_label)
    else:
        for k, color in enumerate(colormaps["viridis"](np.linspace(0, 0.9, groups))):
            named = groups <= NAMED_GROUPS or k in (0, groups - 1)
            axes.plot(after[:, k], color=color, linewidth=1.4, label=f"{now_label}, group {k}" if named else "_")

    values = np.concatenate([before, after])
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() / finite.min() > LOG_SPREAD:
        axes.set_yscale("log")
    axes.set(xlabel="inner step t", ylabel=name)
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", frameon=False)
    return figure


def _columns(schedule: Tensor) -> np.ndarray:
    values = schedule.detach().cpu().double().numpy()
    return np.asarray(values.reshape(len(values), -1))
