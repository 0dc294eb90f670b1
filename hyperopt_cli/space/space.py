"""A space of hyperparameters: raw values in, the lambda of a run out.

    raw --transform--> natural (the `hyper` of a problem) --schedule, groups--> lambda_t

A hyperparameter with a parametric schedule has several knobs, each an entry of `hyper` of its own: `lr` (the peak),
`lr.warmup`, `lr.final`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperopt_cli.optimizers.base import StepHyper
from hyperopt_cli.problem import Hyper
from hyperopt_cli.space.groups import Grouping
from hyperopt_cli.space.schedules import Schedule
from hyperopt_cli.space.transforms import Transform


@dataclass(frozen=True)
class Knob:
    """One tensor of values: tuned, or fixed.

    Attributes:
        initial: natural values, float64: [], [size], [groups] or [size, groups].
        transform: how it is tuned.
        tuned: whether it is tuned at all.
        step: how far a step of 1 of the outer loop goes: decades, or for identity so much of the value; None: as
            `outer/terrain.py` has it.
        is_beta: whether it is a momentum or a beta, whose distance from 1 is what counts.
    """

    initial: Tensor
    transform: Transform
    tuned: bool = True
    step: float | None = None
    is_beta: bool = False


@dataclass(frozen=True)
class Hyperparameter:
    """One name of lambda_t.

    Attributes:
        name: an argument of the optimizer, or what a loss or init reads.
        knob: its value, or the peak of its schedule.
        schedule: over the horizon.
        parameters: the further knobs of the schedule, each [].
        grouping: which parameters share a value.
        fixed: parameters that take a number of their own.
        in_step: whether lambda_t has it (what only `init` reads is no part of a step).
    """

    name: str
    knob: Knob
    schedule: Schedule = field(default_factory=Schedule)
    parameters: dict[str, Knob] = field(default_factory=dict)
    grouping: Grouping = field(default_factory=lambda: Grouping(("",), {}))
    fixed: dict[str, float] = field(default_factory=dict)
    in_step: bool = True

    def knobs(self) -> Iterator[tuple[str, Knob]]:
        """Yields every knob with its key in `hyper`."""
        yield self.name, self.knob
        for name, knob in self.parameters.items():
            yield f"{self.name}.{name}", knob

    def value_at(self, hyper: Hyper, t: int) -> Tensor:
        """Returns the scheduled value at step t, [] or [groups]; knobs that `hyper` leaves out are fixed."""
        further = {name: hyper.get(f"{self.name}.{name}", knob.initial) for name, knob in self.parameters.items()}
        return self.schedule.at(hyper.get(self.name, self.knob.initial), further, t)


@dataclass(frozen=True)
class Space:
    """The space of all hyperparameters of a run."""

    hyperparameters: tuple[Hyperparameter, ...]

    def tuned(self) -> dict[str, Knob]:
        """Returns the tuned knobs by their key in `hyper`."""
        return {key: knob for hp in self.hyperparameters for key, knob in hp.knobs() if knob.tuned}

    def fixed(self) -> dict[str, Knob]:
        """Returns the knobs that stay where they are, by the key that they would have in `hyper`."""
        return {key: knob for hp in self.hyperparameters for key, knob in hp.knobs() if not knob.tuned}

    def initial(self) -> Hyper:
        """Returns the start values of the tuned knobs in raw coordinates."""
        return {key: knob.transform.raw(knob.initial) for key, knob in self.tuned().items()}

    def natural(self, raw: Hyper) -> Hyper:
        """Returns the natural values of raw ones, which are the `hyper` of a problem; this is differentiable."""
        tuned = self.tuned()
        return {key: tuned[key].transform.natural(value) for key, value in raw.items()}

    def pull_back(self, raw: Hyper, hypergradient: Hyper) -> Hyper:
        """Returns dE/draw at `raw` for the `hypergradient` dE/dnatural."""
        with torch.enable_grad():
            leaves = {key: value.detach().requires_grad_() for key, value in raw.items()}
            natural = self.natural(leaves)
        adjoints = [hypergradient[key].to(natural[key]) for key in natural]
        grads = torch.autograd.grad(list(natural.values()), list(leaves.values()), adjoints)
        return dict(zip(leaves, grads, strict=True))

    def project(self, raw: Hyper) -> Hyper:
        """Returns the raw values nearest to `raw` whose natural values lie within the bounds."""
        tuned = self.tuned()
        return {key: tuned[key].transform.project(value) for key, value in raw.items()}

    def at(self, hyper: Hyper, t: int) -> StepHyper:
        """Returns lambda_t; this method is the `schedule` of a problem."""
        return {
            hp.name: hp.grouping.spread(hp.value_at(hyper, t), hp.fixed) for hp in self.hyperparameters if hp.in_step
        }

    def courses(self, hyper: Hyper) -> dict[str, Tensor]:
        """Returns the value of every scheduled name over the horizon, [T] or [T, groups]."""
        return {
            hp.name: torch.stack([hp.value_at(hyper, t) for t in range(hp.schedule.steps)]).detach()
            for hp in self.hyperparameters
            if hp.in_step
        }
