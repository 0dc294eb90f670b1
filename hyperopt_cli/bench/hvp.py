"""`hyperopt bench hvp`: what one product with the Hessian costs beside one gradient, by every engine.

The benchmark of Dagréou, Ablin, Vaiter, Moreau 2024, "How to compute Hessian-vector products?",
https://iclr-blogposts.github.io/2024/blog/bench-hvp/, in torch, with what it leaves out: whether the product is right.
An engine gives the loss, the gradient and the product in one call: its time over a gradient's counts the gradient in.

Two checks stand beside each time, for u and v of independent standard normal numbers:

    symmetry_error    |u.(H v) - v.(H u)| / max(|H u|, |H v|)
    difference        |H v - reference| / |reference|, the reference by the loop of double backwards

An error e of H v that is spread over its elements moves u.(H v) by about |e|, so the first is of the size of the
relative error of H v (`checks/symmetry.py`), and needs no reference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.measuring import Samples, interleaved
from hyperopt_cli.bench.networks import OWN, Network, Ready, Sizes, chosen, networks, ready
from hyperopt_cli.bench.problems import start_and_loss
from hyperopt_cli.bench.report import Case, Figure, Report, Settings, compared
from hyperopt_cli.bench.variants import LOOP
from hyperopt_cli.checks.symmetry import asymmetry, directions
from hyperopt_cli.comparison import relative_difference
from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.engines import MEASURED
from hyperopt_cli.optimizers.base import Params, StepHyper

GRADIENT = "gradient"


class Point(NamedTuple):
    """Where the Hessian is taken, and two directions that it is multiplied with.

    Attributes:
        loss: the loss on one batch, as a function of the parameters.
        params: w.
        u_and_v: the two directions, like `params` with a dimension of 2 in front: [2, *shape].
    """

    loss: Loss
    params: Params
    u_and_v: Params


class Check(NamedTuple):
    """Whether a product is right; see the module's docstring."""

    symmetry_error: float
    difference: float | None


def measure(settings: Settings, sizes: Sizes | None = None) -> Report:
    """Measures the time and memory of one Hessian-vector product over those of a gradient, engine by engine."""
    sizes, device = sizes or Sizes(), settings.device
    known = networks(sizes, device)
    # on a CPU the large ones take minutes: they are asked for by name
    asked = settings.models or (OWN if device.type == "cpu" else tuple(known))
    cases = []
    for name, network in chosen(known, asked).items():
        settings.on_progress(f"{name}: drawing weights and data")
        cases.append(_case(network, settings, sizes))
    written = {**asdict(sizes), "models": list(asked), "batch": settings.batch, "repeat": settings.repeat}
    return Report("hvp", machine(device), written, tuple(cases))


def checked(point: Point, names: Sequence[str]) -> dict[str, Check]:
    """Returns the symmetry error of every engine's product, and its difference from the reference."""
    along_u, along_v = ({name: x[i : i + 1] for name, x in point.u_and_v.items()} for i in (0, 1))
    reference = _product(LOOP, point, along_v) if LOOP in names else None
    checks = {}
    for name in names:
        hu, hv = _product(name, point, along_u), _product(name, point, along_v)
        symmetry_error = asymmetry(point.u_and_v, {key: torch.cat([hu[key], x]) for key, x in hv.items()})
        difference = None if name == LOOP or reference is None else relative_difference(_flat(hv), _flat(reference))
        checks[name] = Check(symmetry_error, difference)
    return checks


def _case(network: Network, settings: Settings, sizes: Sizes) -> Case:
    made = ready(network, 1, settings.batch, sizes, settings.device)
    point = _point(made)
    calls: dict[str, Callable[[], object]] = {GRADIENT: partial(_gradient, point)}
    names = [name for name in MEASURED if settings.engines is None or name in settings.engines]
    calls |= {name: partial(_timed_product, name, point) for name in names}
    with surroundings():
        samples = interleaved(
            calls, settings.repeat, settings.device, lambda message: settings.on_progress(f"{made.title}: {message}")
        )
        settings.on_progress(f"{made.title}: symmetry")
        checks = checked(point, [name for name in names if isinstance(samples[name], Samples)])
    base = samples[GRADIENT]
    assert isinstance(base, Samples)

    def figures(name: str, shown: Samples) -> Mapping[str, Figure]:
        if name not in checks:
            return {"taken_bytes": shown.taken_bytes}
        over = shown.taken_bytes / base.taken_bytes if base.taken_bytes else None  # nothing was seen to be taken
        return {"taken_bytes": shown.taken_bytes, "memory_over_gradient": over, **checks[name]._asdict()}

    return compared(made.title, samples, GRADIENT, figures)


def _point(made: Ready) -> Point:
    params, loss = start_and_loss(made.model)
    batch = made.batches.at(0)
    return Point(lambda w, _: loss(w, batch), params, directions(params, 2))


def _gradient(point: Point) -> None:
    gradient(point.loss, point.params, {})


def _timed_product(engine: str, point: Point) -> None:
    """Takes a product and returns nothing, so that no round holds memory while another is measured."""
    _product(engine, point, {name: x[1:] for name, x in point.u_and_v.items()})


def _product(engine: str, point: Point, along: Params) -> Params:
    """Returns H `along`, one column, taken as forward mode takes it: with one hyperparameter, which does not move."""
    device = next(iter(point.params.values())).device
    hyper: StepHyper = {"lr": torch.zeros((), dtype=torch.float64, device=device)}
    still: StepHyper = {"lr": torch.zeros(1, dtype=torch.float64, device=device)}
    return MEASURED[engine](point.loss, point.params, hyper, along, still).grad_tangents


def _flat(columns: Params) -> Tensor:
    return torch.cat([x.flatten() for x in columns.values()])
