"""The TensorBoard log of a run.

    loss/validation loss/training                 over the outer step
    hyperparameters/<name> hypergradients/<name>  natural values; <name>/<index> for each element of a small vector,
                                                  mean, min, max and a histogram for a large one
    cost/wall_s cost/peak_bytes                   of each outer step
    cost/price                                    of the run so far, in plain training runs
    loss/trials                                   of plain runs beside the outer steps, over their number
    inner_loss                                    over the inner step, one TensorBoard run an outer step
    schedules/<name>                              a picture: the start in grey, now in colour
    best/validation_loss test/loss test/accuracy  at the end
    trust/digits trust/log10_growth               decimal digits of the hypergradient; what amplifies its rounding
    bias, noise                                   texts, only where the hypergradient is not exact, or says nothing
    recipe, hparams, the layout of the custom scalars

The curves of the inner loss lie in folders of their own, inner_loss/outer_0003 and so on, for two reasons: in one chart
they are seen to improve, and a resumed run hides what an interrupted one wrote from an outer step on (`purge_step`),
which counts inner steps alike in the same folder.

What is said at the end has an event file of its own, `*.end`, which a later end replaces: a run that was killed between
that and its status, or that is made longer, has one end.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.callback import Callback
from hyperopt_cli.errors import needing
from hyperopt_cli.run_directory.measured import Measured
from hyperopt_cli.run_directory.pictures import schedule_figure
from hyperopt_cli.run_directory.result import Result

with needing("a log for TensorBoard"):
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

MAX_ELEMENTS = 16
MAX_POINTS = 500
LONGEST_WAIT_S = 5.0
STAMP = re.compile(r"\.(\d{10})\.")
END = ".end"


class TensorBoardLog(Callback):
    """Writes the event files of one run.

    Args:
        folder: where the files are written, usually `RunDirectory.tensorboard`.
        recipe: the recipe's text, shown on the text page.
        purge_step: the first outer step that a resumed run repeats; what was logged from there on is hidden.
        start: the schedules at outer step 0, drawn in grey; None for those of the first step that is logged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        recipe: str = "",
        purge_step: int | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._folder = folder
        if purge_step is not None:
            _remove_end(folder)
            _await_a_later_name(folder)
        self._writer = SummaryWriter(folder, purge_step=purge_step)
        self._start, self._start_label = start, "start"
        self._laid_out = False
        self._trials: Any = None  # the writer of plain runs, in a folder of their own, for they have steps of their own
        if recipe:
            as_code = "".join(f"    {line}\n" for line in recipe.splitlines())  # in Markdown
            self._writer.add_text("recipe", as_code, purge_step or 0)

    def on_outer_step(self, step: Measured) -> None:
        """Adds one outer step and hands it to the file system, so that an open page shows it."""
        if not self._laid_out:
            self._lay_out(step)
        self._add_scalars(step)
        notes = [f"halved: {why}" for why in step.stats.get("halved_for", ())]
        notes += [f"the hypergradient is noise: {step.stats['noise']}"] if "noise" in step.stats else []
        if notes:
            self._writer.add_text("noise", "\n\n".join(notes), step.outer_step)
        self._add_pictures(step)
        self._writer.flush()

        folder = self._folder / "inner_loss" / f"outer_{step.outer_step:04d}"
        with SummaryWriter(folder, purge_step=0) as writer:
            for t in _thinned(len(step.inner_loss)):
                writer.add_scalar("inner_loss", step.inner_loss[t].item(), t)

    def on_trial(self, trial: Any) -> None:
        """Adds the loss of a plain run, unless it diverged."""
        if self._trials is None:  # what an interrupted process wrote from this trial on is hidden
            _await_a_later_name(self._folder / "trials")
            self._trials = SummaryWriter(self._folder / "trials", purge_step=trial.number)
        if trial.validation_loss != math.inf:
            self._trials.add_scalar("loss/trials", trial.validation_loss, trial.number)
            self._trials.flush()

    def on_end(self, result: Result) -> None:
        """Adds the test split, and what the hparams page compares runs by: initial settings and best loss."""
        if result.initial is None or result.best is None:
            return
        settings: dict[str, Any] = {"mode": result.mode, **({"bias": result.bias} if result.bias else {})}
        for name, values in result.initial.hyperparameters.items():
            value = torch.tensor(values, dtype=torch.float64)
            # A vector that starts with equal elements, as most do, needs only one column of the page.
            equal = bool((value == value.flatten()[0]).all())
            numbers = {name: value.flatten()[0].item()} if equal else _elements(name, value)
            settings |= {f"initial {tag}": number for tag, number in numbers.items()}
        scores = []
        if result.test is not None:
            scores = [(result.initial, result.test.initial), (result.best, result.test.best)]
        last = max((p.outer_step for p in (result.initial, result.best) if p.outer_step is not None), default=0)

        _remove_end(self._folder)
        with SummaryWriter(self._folder, filename_suffix=END) as writer:
            for point, score in scores:
                if score is None:  # its run diverged
                    continue
                at = last + 1 if point.outer_step is None else point.outer_step
                writer.add_scalar("test/loss", score.loss, at)
                if score.accuracy is not None:
                    writer.add_scalar("test/accuracy", score.accuracy, at)
            best = {"best/validation_loss": result.best.validation_loss}
            for summary in hparams(settings, best):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            at = last + 1 if result.best.outer_step is None else result.best.outer_step
            writer.add_scalar("best/validation_loss", result.best.validation_loss, at)

    def close(self) -> None:
        """Closes the event files, after which nothing can be added."""
        if self._trials is not None:
            self._trials.close()
        self._writer.close()

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lay_out(self, step: Measured) -> None:
        """Adds what is said once: the layout of the custom scalars, and why the hypergradient is biased."""
        names = list(step.hyperparameters)
        # The tags are regular expressions, anchored at their beginning.
        layout = {
            "losses": {
                "validation and training": ["Multiline", ["loss/validation$", "loss/training$"]],
                "inner loss of each outer step": ["Multiline", ["inner_loss$"]],
            },
            "hyperparameters": _charts("hyperparameters", names),
            "hypergradients": _charts("hypergradients", names),
        }
        self._writer.add_custom_scalars(layout)
        if "bias" in step.stats:
            self._writer.add_text("bias", f"The hypergradient is biased: {step.stats['bias']}.", step.outer_step)
        self._laid_out = True

    def _add_scalars(self, step: Measured) -> None:
        scalars = {
            "loss/validation": step.validation_loss,
            "loss/training": step.training_loss,
            "cost/wall_s": step.stats["wall_s"],
            "cost/peak_bytes": step.stats["peak_bytes"],
        }
        if "growth" in step.stats:
            scalars |= {"trust/digits": step.stats["digits"], "trust/log10_growth": math.log10(step.stats["growth"])}
        scalars |= {"cost/price": step.stats["price"]} if "price" in step.stats else {}
        for group, entries in (("hyperparameters", step.hyperparameters), ("hypergradients", step.hypergradient or {})):
            for name, value in entries.items():
                scalars |= {f"{group}/{tag}": number for tag, number in _elements(name, value).items()}
                finite = value[value.isfinite()]
                if value.numel() > MAX_ELEMENTS and finite.numel():  # NumPy's histogram refuses NaN
                    self._writer.add_histogram(f"{group}/{name}", finite, step.outer_step)
        for tag, number in scalars.items():
            self._writer.add_scalar(tag, number, step.outer_step)

    def _add_pictures(self, step: Measured) -> None:
        """Adds a picture of each learned optimizer argument that varies over time or groups."""
        if self._start is None:
            self._start = step.schedules
            self._start_label = f"outer step {step.outer_step}" if step.outer_step else "start"
        sizes: dict[str, int] = {}
        for key, value in step.hyperparameters.items():  # `lr.warmup` shapes `lr`
            name = key.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + value.numel()
        for name, values in step.schedules.items():
            varies = sizes.get(name, 0) > 1 or (name in sizes and bool((values != values[:1]).any()))
            if varies:  # a single number needs no picture
                now_label = f"outer step {step.outer_step}"
                figure = schedule_figure(name, self._start[name], values, self._start_label, now_label)
                self._writer.add_figure(f"schedules/{name}", figure, step.outer_step)


def _remove_end(folder: Path) -> None:
    for path in folder.glob(f"events.out.*{END}"):
        path.unlink()


def _await_a_later_name(folder: Path) -> None:
    """Waits until a new event file would sort behind the others: names bear the second, and are read in order.

    Where the clock is far behind that of an earlier machine, the others get earlier names instead.
    """
    stamped = [(path, found) for path in sorted(folder.glob("events.out.*")) if (found := STAMP.search(path.name))]
    last = max((int(found[1]) for _, found in stamped), default=0)
    if last < time.time() + LONGEST_WAIT_S:
        while int(time.time()) <= last:
            time.sleep(0.05)
    else:
        for k, (path, found) in enumerate(stamped):
            path.rename(path.with_name(f"{path.name[: found.start(1)]}{k:010d}{path.name[found.end(1) :]}"))


def _elements(name: str, value: Tensor) -> dict[str, float]:
    """Returns every element by its tag, `lr/3` or `lr/3/1`; of a large tensor its mean, least and largest."""
    if value.numel() > MAX_ELEMENTS:
        summary = {"mean": value.double().mean(), "min": value.min(), "max": value.max()}
        return {f"{name}/{key}": number.item() for key, number in summary.items()}
    widths = [len(str(size - 1)) for size in value.shape]
    tags = {}
    for index in product(*map(range, value.shape)):
        parts = [f"{i:0{width}d}" for i, width in zip(index, widths, strict=True)]
        tags["/".join([name, *parts])] = value[index].item()
    return tags


def _charts(group: str, names: list[str]) -> dict[str, list[Any]]:
    return {name: ["Multiline", [f"{group}/{re.escape(name)}(/.*)?$"]] for name in names}


def _thinned(steps: int) -> list[int]:
    """Returns at most `MAX_POINTS` of the steps 0 ... steps - 1, evenly spread, the first and the last among them."""
    if steps <= MAX_POINTS:
        return list(range(steps))
    return [round(k * (steps - 1) / (MAX_POINTS - 1)) for k in range(MAX_POINTS)]
