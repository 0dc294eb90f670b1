"""What a run shows while it goes on: a live display on a terminal, a plain line an outer step elsewhere, or JSON."""

import json as json_format
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hyperopt_cli.callback import Callback
from hyperopt_cli.cli.tables import FEW_DIGITS, bias_line, brief, duration, loss, outcome_table, share, sources_lines
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.outer.outer_step import OuterStep, Trial
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.run_directory.directory import ACCURACY, TRUSTED, RunDirectory
from hyperopt_cli.run_directory.json_files import to_text
from hyperopt_cli.run_directory.measured import factors_text
from hyperopt_cli.run_directory.result import Point, Result

NUM_ROWS = 12


@contextmanager
def watching(experiment: Experiment, directory: RunDirectory, json: bool) -> Iterator[Callback]:
    """A context with the display that fits the output; it shows what the package logs too, such as that it compiles."""
    with _watching(experiment, directory, json) as callback:
        logger, handler = logging.getLogger("hyperopt_cli"), _LogMessages(callback)
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield callback
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)


@contextmanager
def _watching(experiment: Experiment, directory: RunDirectory, json: bool) -> Iterator[Callback]:
    if json:
        yield JsonLines()
        return
    console = Console()
    if not console.is_terminal:
        _echo(_head(experiment, directory))
        yield PlainLines(experiment)
        return
    console.print(_head(experiment, directory), highlight=False)
    display = LiveDisplay(experiment)
    with Live(get_renderable=display.render, console=console, refresh_per_second=8):
        yield display


class _LogMessages(logging.Handler):
    """Passes the text of each log record on to a callback."""

    def __init__(self, callback: Callback) -> None:
        super().__init__()
        self._callback = callback

    def emit(self, record: logging.LogRecord) -> None:
        self._callback.on_message(record.getMessage())


def summary(result: Result, directory: RunDirectory, json: bool) -> None:
    """Prints the result of a run, and how to see more of it."""
    if json:
        _echo(to_text({"result": result.to_json(), "directory": str(directory.root)}))
        return
    console = Console()
    if result.best is not None:
        console.print(outcome_table(result))
    console.print(f"\n{result.status} in {result.wall_s:.1f} s; everything is in {directory.root}", highlight=False)
    if result.bias is not None:
        console.print(bias_line(result.bias), highlight=False, soft_wrap=True)
    for line in sources_lines(result):
        console.print(line, highlight=False, soft_wrap=True)
    curves = f"curves: tensorboard --logdir {shlex.quote(str(directory.tensorboard))}"
    console.print(curves, highlight=False, soft_wrap=True)


def _echo(text: str) -> None:
    """Prints a line; the run goes on if nobody reads it any more, as after `| head`."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _head(experiment: Experiment, directory: RunDirectory) -> str:
    tuned = experiment.space.tuned()
    num = sum(knob.initial.numel() for knob in tuned.values())
    descent, axes = experiment.descent, {}
    how = f"mode {experiment.mode.name}, by {descent.optimizer}"
    if descent.trials is not None:
        how = f"{descent.trials} trials by {descent.optimizer}"
    elif descent.method().in_units:
        axes = Terrain.of(experiment.space, experiment.steps, True).axes
    numbers = "1 number" if num == 1 else f"{num} numbers"
    bias = experiment.mode.bias(experiment.steps)
    steps = "; ".join(f"{name} {axis.meaning}" for name, axis in axes.items())
    return (
        f"tuning {numbers} ({', '.join(tuned)}) over {experiment.steps} steps, {how}, "
        f"on {experiment.device}; writing {directory.root}"
        + (f"\na step of 1: {steps}" if steps else "")
        + (f"\n{bias_line(bias)}" if bias is not None else "")
    )


def _choices(step: OuterStep, is_first: bool) -> list[str]:
    """Returns lines on what was chosen by measuring, and why; only the first hypergradient has any."""
    if not is_first or step.hypergradient is None:
        return []
    reasons = (("mode", "plan"), ("engine", "engine_why"))
    lines = [f"{what} {step.stats[what]}: {step.stats[why]}" for what, why in reasons if why in step.stats]
    lines += [f"checks: {step.stats['checks']}"] if "checks" in step.stats else []
    return lines + ([f"steps {step.stats['compiled_why']}"] if "compiled_why" in step.stats else [])


def _trust(step: OuterStep) -> str:
    """Returns a warning where the hypergradient has few digits or none, and an empty text elsewhere."""
    if "noise" in step.stats:
        return "hypergradient: noise, 0 digits"
    digits = step.stats.get("digits", FEW_DIGITS)
    return "" if digits >= FEW_DIGITS else f"hypergradient: {digits:.1f} digits"


class JsonLines(Callback):
    """Prints one JSON object for each outer step."""

    def on_outer_step(self, step: OuterStep) -> None:
        """Prints the step's point, its hypergradient and its cost."""
        line = {
            **json_format.loads(to_text(Point.of(step).to_json())),
            "training_loss": None if step.training_loss == math.inf else step.training_loss,
            "hypergradient": step.hypergradient,
            "wall_s": step.stats["wall_s"],
            "price": step.stats["price"],
            **{
                key: step.stats[key]
                for key in (*TRUSTED, "bias", "checks", "mode", "plan", "engine", "engine_why", "compiled_why")
                if key in step.stats
            },
            **({"factors": factors_text(step.stats["factors"])} if "factors" in step.stats else {}),
        }
        _echo(to_text(line))

    def on_trial(self, trial: Trial) -> None:
        """Prints the trial's point and its price."""
        _echo(to_text(trial.to_json()))

    def on_message(self, text: str) -> None:
        """Prints the message as a JSON object of its own."""
        _echo(to_text({"said": text}))


class PlainLines(Callback):
    """Prints one line of text for each outer step."""

    def __init__(self, experiment: Experiment) -> None:
        self._clock, self._is_first = Clock(experiment), True

    def on_inner_step(self, outer_step: int, replica: int, phase: str, done: int, steps: int) -> None:
        """Counts the inner step, from which the time that is left is estimated.

        Args:
            outer_step: the outer step that is measured.
            replica: which of its training runs this is, from 0.
            phase: the part of the run, `forward` or `backward`.
            done: steps that this part has taken.
            steps: steps that it takes in all.
        """
        self._clock.inner(outer_step, replica, phase, done, steps)

    def on_outer_step(self, step: OuterStep) -> None:
        """Prints the losses, the hyperparameters and the time that is left."""
        for line in _choices(step, self._is_first):
            _echo(line)
        if self._is_first and "factors" in step.stats:
            shown = ", ".join(f"{label} {text}" for label, text in factors_text(step.stats["factors"]).items())
            _echo(f"exact arithmetic multiplies by {shown} (metrics.jsonl has those of every outer step)")
        self._is_first = self._is_first and step.hypergradient is None
        values = "  ".join(f"{name} {brief(value.tolist())}" for name, value in step.hyperparameters.items())
        self._clock.measured(step.outer_step, step.stats["price"])
        left, trust = self._clock.left_s(), _trust(step)
        values += f"  {trust}" if trust else ""
        accuracy = f"accuracy {share(step.stats[ACCURACY])}  " if ACCURACY in step.stats else ""
        number = f"{self._clock.unit} {step.outer_step}/{self._clock.last}"
        _echo(
            f"{number}  validation {loss(step.validation_loss)}  {accuracy}"
            f"training {loss(step.training_loss)}  {values}  "
            f"(price {step.stats['price']:g}, {step.stats['wall_s']:.1f} s, {duration(left)} left)"
        )

    def on_trial(self, trial: Trial) -> None:
        """Prints a plain run: what it was for, its loss and its values."""
        self._clock.measured(trial.number, trial.price_so_far)
        values = "  ".join(f"{name} {brief(value.tolist())}" for name, value in trial.hyperparameters.items())
        what = "refused" if trial.refused else trial.kind
        found, left = f"validation {loss(trial.validation_loss)}", ""
        if self._clock.is_search:
            if trial.number == 0:  # the line of the start follows, which is an outer step too
                return
            what, left = f"trial {trial.number}/{self._clock.last}", f", {duration(self._clock.left_s())} left"
            found = found if trial.why is None else trial.why
        _echo(f"{what}  {found}  {values}  (price {trial.price_so_far:g}{left})")

    def on_message(self, text: str) -> None:
        """Prints the message as a line of its own."""
        _echo(text)


class Clock:
    """Counts how far a run is, and estimates how long it will still take at the rate so far.

    It goes by hypergradients, in a search by trials, and by the price where there is a budget that is nearer.

    Attributes:
        is_search: whether the run is a search.
        unit: what is counted, "trial" or "outer".
        last: the number of the last.
        num_trials: of a search, how many are measured.
        share: how far the training run is that is under way.
    """

    def __init__(self, experiment: Experiment) -> None:
        descent = experiment.descent
        self.is_search = descent.trials is not None
        self.unit = "trial" if self.is_search else "outer"
        self.last = descent.steps if descent.trials is None else descent.trials - 1
        self.replicas, self._budget = descent.replicas, descent.budget
        self.num_trials = 0
        self._began = time.monotonic()
        self._priced_from: tuple[float, float] | None = None  # a price, and the time when it was reached
        self._priced = 0.0, self._began  # the last one
        self.share = 0.0  # of the current hypergradient
        self._total = (self.last + 1) * self.replicas
        self._complete = 0
        self._begin: float | None = None  # where this process took the run up
        self._sweeps = experiment.mode.has_backward

    def inner(self, outer_step: int, replica: int, phase: str, done: int, steps: int) -> None:
        """Counts an inner step; a sweep back is taken to last twice as long as the way there.

        Args:
            outer_step: the outer step that is measured.
            replica: which of its training runs this is, from 0.
            phase: the part of the run; `forward` is the way there.
            done: steps that this part has taken.
            steps: steps that it takes in all.
        """
        self._complete = (self.num_trials if self.is_search else outer_step) * self.replicas + replica
        there = done / steps
        self._sweeps = self._sweeps or phase == "backward"  # auto may have chosen any
        self.share = there if not self._sweeps else there / 3 if phase == "forward" else (1 + 2 * there) / 3
        self._begin = self._complete + self.share if self._begin is None else self._begin

    def measured(self, number: int, price: float) -> None:
        """Counts a trial or an outer step, by its number and by the price of the run so far."""
        self._priced = price, time.monotonic()
        if self._priced_from is None:  # the first that this process measures
            self._priced_from = (0.0, self._began) if number == 0 else self._priced
            if self.is_search:
                self._begin = (self._begin or 0.0) + number * self.replicas
        if self.is_search:
            self.num_trials = max(self.num_trials, number + 1)
            self._complete, self.share = self.num_trials * self.replicas, 0.0

    def left_s(self) -> float:
        """Returns the seconds that are left at the rate so far; 0 as long as nothing is counted."""
        complete, now = self._complete + self.share, time.monotonic()
        done = complete - (self._begin or 0.0)
        left = 0.0 if not done else (now - self._began) * (self._total - complete) / done
        (first, first_s), (price, price_s) = self._priced_from or (0.0, 0.0), self._priced
        if self._budget is None or price <= first:
            return left
        return min(left, max(0.0, (price_s - first_s) * (self._budget - price) / (price - first) - (now - price_s)))


class LiveDisplay(Callback):
    """Shows the progress of the outer and inner loops, and the last outer steps."""

    def __init__(self, experiment: Experiment) -> None:
        self._clock = Clock(experiment)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn()
        )
        self._outer = self._progress.add_task(self._clock.unit, total=self._clock.last + 1, note="")
        self._inner = self._progress.add_task("inner", total=1.0, note="")
        self._steps: list[OuterStep | Trial] = []
        self._choices: list[str] = []
        self._is_first = True

    def on_inner_step(self, outer_step: int, replica: int, phase: str, done: int, steps: int) -> None:
        """Moves the bars of both loops.

        Args:
            outer_step: the outer step that is measured.
            replica: which of its training runs this is, from 0.
            phase: the part of the run, which stands beside the inner bar.
            done: steps that this part has taken.
            steps: steps that it takes in all.
        """
        self._clock.inner(outer_step, replica, phase, done, steps)
        replicas = f", replica {replica + 1}/{self._clock.replicas}" if self._clock.replicas > 1 else ""
        self._progress.update(self._inner, completed=self._clock.share, note=f"{phase} {done}/{steps}{replicas}")
        number = self._clock.num_trials if self._clock.is_search else outer_step
        note = f"{number}/{self._clock.last}, {duration(self._clock.left_s())} left"
        self._progress.update(self._outer, completed=number, note=note)

    def on_outer_step(self, step: OuterStep) -> None:
        """Adds a row for the outer step, and drops the oldest row where there are too many."""
        self._choices += _choices(step, self._is_first)
        self._is_first = self._is_first and step.hypergradient is None
        self._steps = [*self._steps, step][-NUM_ROWS:]
        self._clock.measured(step.outer_step, step.stats["price"])
        self._progress.update(self._outer, completed=step.outer_step + 1)

    def on_trial(self, trial: Trial) -> None:
        """Adds a row for a plain run; that of the start of a search is an outer step too, and its row follows."""
        self._clock.measured(trial.number, trial.price_so_far)
        if self._clock.is_search:
            self._progress.update(self._outer, completed=trial.number + 1)
        if not self._clock.is_search or trial.number:
            self._steps = [*self._steps, trial][-NUM_ROWS:]

    def on_message(self, text: str) -> None:
        """Adds a line of text above the rows."""
        self._choices.append(text)

    def render(self) -> Group:
        """Returns the lines, the rows and the bars as they are now."""
        if not self._steps:
            return Group(*map(Text, self._choices), Text("measuring the start"), self._progress)
        names = list(self._steps[0].hyperparameters)
        table = Table(self._clock.unit, "price", "validation", "accuracy", "training", *names, box=None)
        for step in self._steps:
            values = [brief(value.tolist()) for value in step.hyperparameters.values()]
            if isinstance(step, Trial):
                what = "refused" if step.refused else str(step.number) if self._clock.is_search else step.kind
                stopped = step.why is not None and step.price < 1
                found = "stopped" if stopped else loss(step.validation_loss)
                table.add_row(what, f"{step.price_so_far:g}", found, "", "", *values)
                continue
            trust, price = _trust(step), f"{step.stats['price']:g}"
            number = f"{step.outer_step} {trust}" if trust else str(step.outer_step)
            accuracy = share(step.stats.get(ACCURACY))
            table.add_row(number, price, loss(step.validation_loss), accuracy, loss(step.training_loss), *values)
        return Group(*map(Text, self._choices), table, self._progress)
