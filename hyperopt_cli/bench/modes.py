"""`hyperopt bench modes`: one hypergradient by every mode, beside two that are written in plain torch.

The MLP 784-300-300-10 of most papers on the matter, batches of 128, T = 100, K = 8: six rates, momentum and weight
decay of SGD. Each rate has a window of the run, so that forward mode carries two more columns than windows have begun;
in the second case every step takes a mean of all rates, and forward mode carries all eight from the start. On MNIST
where a folder with it is given, else on random data of its shape.

The plain ones (`baselines.py`): an autograd unroll, and forward mode by a loop of double backwards.

    over_loop             time over that loop's
    memory_over_unroll    memory taken over the unroll's
    largest_difference    of any hyperparameter's derivative from the unroll's
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch

from hyperopt_cli.bench.baselines import loop_of_double_backwards, unroll
from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.measuring import Ratio, Samples, interleaved
from hyperopt_cli.bench.problems import (
    NUM_CLASSES,
    Workload,
    blend,
    drawn,
    mnist_batches,
    scalars,
    seeded,
    supervised,
    windows,
)
from hyperopt_cli.bench.report import Case, Figure, Report, Settings, compared, largest_difference
from hyperopt_cli.bench.variants import by_engine, of_reverse
from hyperopt_cli.models import mlp
from hyperopt_cli.modes import Forward, Measurements, Mode, Reverse, Reversible, hypergradient
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.problem import Hyper

UNROLL, LOOP = "plain autograd unroll", "plain loop of double backwards"
SCHEDULES = {"rates in windows": windows, "all rates at every step": blend}


@dataclass(frozen=True)
class Sizes:
    """The sizes of the network, of its data and of lambda."""

    steps: int = 100
    inputs: int = 784
    hidden: tuple[int, ...] = (300, 300)
    batch: int = 128
    num_rates: int = 6
    slots: int = 10
    share_of_states: float = 0.72  # slots of the compiled run that is to take half of an unroll's memory
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4


class Outcome(NamedTuple):
    """A hypergradient, and the engine that took its products where the mode says which."""

    grad: Hyper
    engine: str | None = None


def measure(settings: Settings, sizes: Sizes | None = None) -> Report:
    """Measures the time and memory of every mode, against the unroll and the loop of double backwards."""
    sizes = sizes or Sizes()
    steps, batch = settings.steps or sizes.steps, settings.batch or sizes.batch
    data = "random data" if settings.data is None else "MNIST"
    settings.on_progress(f"reading {data}")
    if settings.data is None:
        batches = drawn((sizes.inputs,), batch, settings.device, steps)
    else:
        batches = mnist_batches(settings.data, batch, settings.device, steps)
    inputs = batches.inputs[0, 0].numel()
    title = f"MLP {'-'.join(map(str, (inputs, *sizes.hidden, NUM_CLASSES)))}, batch {batch}, T = {steps}, {data}"
    shape, num_rates = tuple(batches.inputs.shape[2:]), min(sizes.num_rates, steps)
    cases = []
    for what, schedule in SCHEDULES.items():
        model = seeded(lambda: mlp(shape, NUM_CLASSES, sizes.hidden)).to(batches.inputs.device)
        hyper = {
            "lr": torch.full((num_rates,), sizes.lr, dtype=torch.float64),
            **scalars({"momentum": sizes.momentum, "weight_decay": sizes.weight_decay}),
        }
        run = supervised(model, batches, steps, SGD(), hyper, schedule(num_rates, steps))
        cases.append(_case(f"{title}, {what}", run, sizes, settings))
    written = {**asdict(sizes), "inputs": inputs, "steps": steps, "batch": batch, "data": data}
    return Report("modes", machine(settings.device), {**written, "repeat": settings.repeat}, tuple(cases))


def _case(title: str, workload: Workload, sizes: Sizes, settings: Settings) -> Case:
    num_columns = sum(value.numel() for value in workload.hyper.values())
    title = f"{title}, K = {num_columns}"
    calls: dict[str, Callable[[], object]] = {
        UNROLL: lambda: Outcome(unroll(workload)),
        LOOP: lambda: Outcome(loop_of_double_backwards(workload)),
        **{
            name: partial(_differentiated, workload, mode, Measurements())
            for name, mode in _modes(sizes, workload.problem.steps, settings.engines).items()
        },
    }
    samples = interleaved(
        calls, settings.repeat, settings.device, lambda message: settings.on_progress(f"{title}: {message}")
    )
    base, loop = samples[UNROLL], samples[LOOP]
    assert isinstance(base, Samples)

    def figures(name: str, shown: Samples) -> Mapping[str, Figure]:
        out: Outcome = shown.results[0]
        over_loop = None
        if isinstance(loop, Samples) and shown is not loop:
            over_loop = Ratio.of(shown.timing.rounds_s, loop.timing.rounds_s)
        return {
            "over_loop": over_loop,
            "taken_bytes": shown.taken_bytes,
            "memory_over_unroll": shown.taken_bytes / base.taken_bytes if base.taken_bytes else None,
            "largest_difference": None if shown is base else largest_difference(out.grad, base.results[0].grad),
            "engine": out.engine,
        }

    return compared(title, samples, UNROLL, figures)


def _modes(sizes: Sizes, steps: int, asked: Sequence[str] | None) -> dict[str, Mode]:
    """Returns the modes to measure by name, with forward mode by each of the engines that are asked for."""
    slots, some = min(sizes.slots, steps), max(1, round(sizes.share_of_states * steps))
    return {
        "forward, auto": Forward(),
        **{f"forward, {name}": mode for name, mode in by_engine(asked).items()},
        **{f"reverse{how}": make() for how, make in of_reverse().items()},
        f"reverse, slots: {slots}": Reverse(slots=slots, compile=False),
        f"reverse, slots: {some}, compiled": Reverse(slots=some, compile=True),
        "reversible": Reversible(),
    }


def _differentiated(workload: Workload, mode: Mode, known: Measurements) -> Outcome:
    out = hypergradient(*workload, mode, measurements=known)
    return Outcome(out.grad, out.stats.get("engine"))
