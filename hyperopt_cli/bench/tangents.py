"""`hyperopt bench tangents`: what a column costs, K = 1 ... 64 of them at once, by every engine.

A tangent step is timed as forward mode takes it, whole: the gradient, K tangents of it, and SGD with momentum updating
the state and its tangents. Tuned are rates (every step takes a mean of them), from K = 2 on the momentum, from K = 3 on
the weight decay, so that all columns are carried from the first step on, which is not timed.

    column_over_gradient    (t_K - t_gradient) / K / t_gradient
    column_over_loop        the same over that of the loop of double backwards
    share_of_rate           flops / (t_K rate)

flops are those of the step's matrix products (`flops.py`, the least that are needed, whatever an engine does), rate the
flops a second of a product of two large square matrices, taken right before and right after what is measured: a shared
machine changes its pace within a round.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from hyperopt_cli.bench.flops import StepFlops, step_flops
from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.measuring import OwnTime, Ratio, Samples, interleaved
from hyperopt_cli.bench.networks import Ready, Sizes, chosen, networks, ready
from hyperopt_cli.bench.problems import Workload, blend, supervised
from hyperopt_cli.bench.report import Case, Curves, Figure, Report, Settings, compared, largest_difference
from hyperopt_cli.bench.stopwatch import gradients, matrix_products, steps_but_the_first
from hyperopt_cli.bench.variants import LOOP, by_engine
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes import Measurements
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.problem import Hyper

GRADIENT = "gradient"
NETWORKS = ("mlp", "convnet", "wide_resnet")
COLUMNS = (1, 2, 4, 8, 16, 32, 64)
COLUMNS_TIMED, GRADIENTS_TIMED, PRODUCTS_TIMED = 64, 20, 1  # in a round, so that none is over at once


@dataclass(frozen=True)
class Rate:
    """The edges of the square matrices whose product tells how fast the machine is, on a CPU and on a GPU."""

    edge_cpu: int = 2048
    edge_gpu: int = 8192


class Setup(NamedTuple):
    """What all cases of a network share.

    Attributes:
        network: the network on its device.
        flops: the operations of one of its steps.
        product: times the product of two large matrices.
        product_flops: the operations of that product.
    """

    network: Ready
    flops: StepFlops
    product: Callable[[], OwnTime]
    product_flops: float


class Beside(NamedTuple):
    """What a call returned, and how many operations a second the machine did meanwhile in matrix products."""

    result: Any
    rate: float


def measure(settings: Settings, sizes: Sizes | None = None, rate: Rate | None = None) -> Report:
    """Measures the time of a column over that of a gradient, and how near it comes to the rate of matrix products."""
    sizes, rate, device = sizes or Sizes(), rate or Rate(), settings.device
    if settings.steps == 1:
        raise UsageError("steps: got 1; the first step is not timed, so give at least 2")
    asked, columns = settings.models or NETWORKS, settings.columns or COLUMNS
    cases: list[Case] = []
    curves: list[Curves] = []
    for name, network in chosen(networks(sizes, device), asked).items():
        settings.on_progress(f"{name}: drawing weights and data")
        made = ready(network, 1, settings.batch, sizes, device)
        edge = rate.edge_cpu if device.type == "cpu" else rate.edge_gpu
        product = matrix_products(edge, getattr(torch, sizes.dtype), PRODUCTS_TIMED, device)
        with surroundings():
            setup = Setup(made, step_flops(made.model, made.batches.at(0)), product, 2 * edge**3)
        found = dict(zip(columns, _cases(setup, columns, settings), strict=True))
        cases += found.values()
        curves += _curves(setup, found)
    written = {
        **asdict(sizes), **asdict(rate), "models": list(asked), "columns": list(columns),
        "batch": settings.batch, "steps": settings.steps, "repeat": settings.repeat,
    }  # fmt: skip
    return Report("tangents", machine(device), written, tuple(cases), curves=tuple(curves))


def tuned(num_columns: int) -> tuple[Hyper, int]:
    """Returns K values of lambda, and how many of them are rates.

    >>> hyper, num_rates = tuned(8)
    >>> num_rates, {name: list(value.shape) for name, value in hyper.items()}
    (6, {'lr': [6], 'momentum': [], 'weight_decay': []})
    """
    num_rates = max(1, num_columns - 2)
    others = {"momentum": 0.9, "weight_decay": 1e-4}
    hyper = {"lr": torch.full((num_rates,), 0.01, dtype=torch.float64)}
    for name in list(others)[: num_columns - num_rates]:
        hyper[name] = torch.tensor(others[name], dtype=torch.float64)
    return hyper, num_rates


def _cases(setup: Setup, columns: tuple[int, ...], settings: Settings) -> Iterator[Case]:
    """Yields a case for every K; `taken` keeps the bytes a column that each variant took in the case before."""
    taken: dict[str, float] = {}
    for num_columns in columns:
        steps = settings.steps or 1 + max(1, COLUMNS_TIMED // num_columns)
        title = f"{setup.network.title}, K = {num_columns}, T = {steps}"
        run = workload(setup.network, num_columns, steps)
        calls = {GRADIENT: partial(gradients, run, GRADIENTS_TIMED, settings.device)}
        for name, mode in by_engine(settings.engines).items():
            needs = taken.get(name, 0.0) * num_columns
            calls[name] = partial(steps_but_the_first, mode, run, settings.device, needs, Measurements())
        with surroundings():
            samples = interleaved(
                {name: partial(_beside, setup, call) for name, call in calls.items()},
                settings.repeat,
                settings.device,
                lambda message, at=title: settings.on_progress(f"{at}: {message}"),  # type: ignore[misc]
            )
        able = {name: shown for name, shown in samples.items() if isinstance(shown, Samples)}
        taken |= {name: shown.taken_bytes / num_columns for name, shown in able.items()}
        yield compared(title, samples, GRADIENT, partial(_figures, able=able, setup=setup, num_columns=num_columns))


def _beside(setup: Setup, call: Callable[[], OwnTime]) -> OwnTime:
    before = setup.product().seconds
    seconds, result = call()
    after = setup.product().seconds
    return OwnTime(seconds, Beside(result, setup.product_flops / ((before + after) / 2)))


def _figures(
    name: str, shown: Samples, able: Mapping[str, Samples], setup: Setup, num_columns: int
) -> dict[str, Figure]:
    seconds, rates = shown.timing.rounds_s, [beside.rate for beside in shown.results]
    flops = setup.flops.of_step(0 if name == GRADIENT else num_columns)
    shares = [flops / each / rate for each, rate in zip(seconds, rates, strict=True)]
    share = Ratio.of(shares, [1.0] * len(shares))  # a call's own rate stands beside it: the median of the rounds
    if name == GRADIENT:
        return {"machine_gigaflops": statistics.median(rates) / 1e9, "share_of_rate": share}
    base, loop = able[GRADIENT].timing.rounds_s, able.get(LOOP)
    figures: dict[str, Figure] = {
        "machine_gigaflops": statistics.median(rates) / 1e9,
        "column_over_gradient": Ratio.of(_columns_s(seconds, base, num_columns), base),
        "column_over_loop": None,
        "share_of_rate": share,
        "taken_bytes": shown.taken_bytes,
        "largest_difference": None,
    }
    if loop is not None and name != LOOP:
        columns = (_columns_s(each.timing.rounds_s, base, num_columns) for each in (shown, loop))
        figures["column_over_loop"] = Ratio.of(*columns)
        figures["largest_difference"] = largest_difference(shown.results[0].result, loop.results[0].result)
    return figures


def _columns_s(steps_s: Sequence[float], gradients_s: Sequence[float], num_columns: int) -> list[float]:
    """Returns the seconds of one column in each round."""
    return [(step - gradient) / num_columns for step, gradient in zip(steps_s, gradients_s, strict=True)]


def _curves(setup: Setup, found: Mapping[int, Case]) -> Iterator[Curves]:
    """Yields the figures of a network over K, which its cases say one by one."""
    floor = f"{setup.flops.column_over_gradient:.2f}"
    for key, what in {
        "column_over_gradient": f"a column over a gradient (least number of operations: {floor})",
        "share_of_rate": "operations over what the matrix product's rate allows",
    }.items():
        names = dict.fromkeys(v.name for case in found.values() for v in case.variants if key in v.figures)
        lines = {name: tuple(_median(case, name, key) for case in found.values()) for name in names}
        yield Curves(f"{setup.network.title}: {what}", "K", tuple(found), lines)


def _median(case: Case, name: str, key: str) -> float | None:
    (variant,) = (each for each in case.variants if each.name == name)
    figure = variant.figures.get(key)
    return figure.of_medians if isinstance(figure, Ratio) else None


def workload(network: Ready, num_columns: int, steps: int) -> Workload:
    """Returns a run of SGD with momentum over T steps, whose K columns are all carried from the first step on."""
    hyper, num_rates = tuned(num_columns)
    optimizer = SGD(momentum=0.9, weight_decay=1e-4)
    return supervised(network.model, network.batches, steps, optimizer, hyper, blend(num_rates, steps))
