"""Where a method walks: the hyperparameters as one vector, in which a step of 1 means as much for each of them.

| transform | coordinate | a step of 1 |
|---|---|---|
| log, softplus | log10 of the value (softplus: raw / ln 10) | ten times the value |
| logit | raw / ln 10 | ten times the odds |
| identity with bounds | share of the distance between the bounds | from one bound to the other |
| identity | the value, in units of its start (of 1 at 0) | as much again |
| momentum and betas, however they are transformed | log10(1 - beta) | a tenth of the distance from 1 |

`step:` of a hyperparameter replaces the last column: so many decades, so much of the value. The logit of a momentum
flattens, where the effective rate lr / (1 - momentum) grows: from .5 to .99 it is multiplied by 50. So one step at most
halves or doubles 1 - beta and that rate, and 1 - beta stays above 1 / T unless bounds, or the start, say otherwise.

Methods that are known by their rule (adam, sgd, sign) walk in raw coordinates, divided by `step` where there is one.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.problem import Hyper
from hyperopt_cli.space import Knob, Space, Transform

LN10 = math.log(10.0)
LEAST_BETA = 1e-4  # the raw value of 0 is minus infinity
RATE, MOMENTUM = "lr", "momentum"
SEARCHED = 2.0  # units to either side of the start, where a search has no bounds


class Axis(NamedTuple):
    """The coordinates of one knob.

    Attributes:
        transform: between raw and natural values.
        unit: what a coordinate of 1 is: so much of the raw value or, near one, so many decades of 1 - value.
        low, high: bounds of the coordinate.
        near_one: whether it is log10(1 - value) / unit.
    """

    transform: Transform
    unit: float
    low: float = -math.inf
    high: float = math.inf
    near_one: bool = False

    @classmethod
    def of(cls, knob: Knob, steps: int, in_units: bool) -> "Axis":
        """Returns the axis of a knob.

        Args:
            knob: the knob.
            steps: the horizon T.
            in_units: as in the table above, or raw coordinates divided by `step`.
        """
        transform, step = knob.transform, knob.step or 1.0
        name, bounds, start = transform.name, transform.bounds, knob.initial
        if in_units and knob.is_beta:
            least = 0.0 if name == "identity" else LEAST_BETA
            low, high = bounds or (least, max(1 - 1 / steps, float(start.max())))
            if bounds is not None and name == "logit":  # whose raw value is infinite at its ends
                low, high = low + LEAST_BETA * (high - low), high - LEAST_BETA * (high - low)
                low, high = min(low, float(start.min())), max(high, float(start.max()))
            return cls(transform, step, near_one=True).within((min(max(low, least), float(start.min())), high))
        unit = step
        if in_units and name != "identity":
            unit = LN10 * step
        elif in_units and knob.step is None:
            unit = bounds[1] - bounds[0] if bounds is not None else float(start.abs().max()) or 1.0
        return cls(transform, unit).within(None if name == "logit" else bounds)

    def within(self, bounds: tuple[float, float] | None) -> "Axis":
        """Returns the axis with bounds, which are natural values."""
        if bounds is None:
            return self
        ends = [float(self.coordinate(torch.tensor(end, dtype=torch.float64))) for end in bounds]
        return self._replace(low=min(ends), high=max(ends))

    @property
    def meaning(self) -> str:
        """What a step of 1 does to the value, in words."""
        if self.near_one:
            return f"its distance from 1 times {10**self.unit:.3g}"
        if self.transform.name == "identity":
            return f"plus {self.unit:.3g}"
        return f"{'its odds ' if self.transform.name == 'logit' else ''}times {math.exp(self.unit):.3g}"

    def coordinate(self, natural: Tensor) -> Tensor:
        """Returns the coordinate of a natural value."""
        return (torch.log10(1 - natural) if self.near_one else self.transform.raw(natural)) / self.unit

    def natural(self, coordinate: Tensor) -> Tensor:
        """Returns the natural value of a coordinate; this is differentiable."""
        scaled = coordinate * self.unit
        return 1 - 10**scaled if self.near_one else self.transform.natural(scaled)

    def raw(self, coordinate: Tensor) -> Tensor:
        """Returns the raw value of a coordinate."""
        return self.transform.raw(self.natural(coordinate)) if self.near_one else coordinate * self.unit


@dataclass(frozen=True)
class Terrain:
    """The vector that a method walks in.

    Attributes:
        space: the hyperparameters.
        axes: of every tuned knob, by its key.
        rates: natural values of `lr` that a scan tries.
        seed: of the recipe, from which a method derives what it draws.
    """

    space: Space
    axes: dict[str, Axis]
    rates: tuple[float, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, space: Space, steps: int, in_units: bool, rates: tuple[float, ...] = (), seed: int = 0) -> "Terrain":
        """Returns the terrain of a space.

        Args:
            space: the hyperparameters.
            steps: the horizon T.
            in_units: in steps of every hyperparameter's own size, or in raw coordinates.
            rates: natural values of `lr` that a scan tries.
            seed: of the recipe.
        """
        return cls(space, {key: Axis.of(knob, steps, in_units) for key, knob in space.tuned().items()}, rates, seed)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the knobs, by key."""
        return {key: knob.initial.shape for key, knob in self.space.tuned().items()}

    @property
    def start(self) -> Tensor:
        """Where the recipe starts, [K]."""
        return self.vector({key: knob.initial for key, knob in self.space.tuned().items()})

    @property
    def low(self) -> Tensor:
        """Returns the lower bounds, minus infinity where there is none, [K]."""
        return self._spread({key: axis.low for key, axis in self.axes.items()})

    @property
    def high(self) -> Tensor:
        """Returns the upper bounds, infinity where there is none, [K]."""
        return self._spread({key: axis.high for key, axis in self.axes.items()})

    def box(self) -> tuple[Tensor, Tensor]:
        """Returns where a search draws, its lowest and its highest vector, [K] each.

        These are the bounds or, where there is none, two units from the recipe's start: two decades of a learning rate.
        """
        start, low, high = self.start, self.low, self.high
        return (
            torch.where(low.isfinite(), low, start - SEARCHED),
            torch.where(high.isfinite(), high, start + SEARCHED),
        )

    @property
    def sizes(self) -> Tensor:
        """How many entries the hyperparameter of each entry has, [K]."""
        return self._spread({key: float(shape.numel()) for key, shape in self.shapes.items()})

    @property
    def bounded(self) -> Tensor:
        """Returns which entries the recipe gives bounds that are finite coordinates, [K] of bool."""
        given = self._spread({key: float(axis.transform.bounds is not None) for key, axis in self.axes.items()})
        return given.bool() & self.low.isfinite() & self.high.isfinite()

    def entries(self, key: str) -> slice:
        """Returns where the entries of a knob stand in the vector."""
        begin = 0
        for name, shape in self.shapes.items():
            if name == key:
                return slice(begin, begin + shape.numel())
            begin += shape.numel()
        raise KeyError(key)

    def vector(self, hyper: Hyper) -> Tensor:
        """Returns natural values as the vector, [K] in float64."""
        return torch.cat([axis.coordinate(hyper[key].double()).flatten() for key, axis in self.axes.items()])

    def natural(self, vector: Tensor) -> Hyper:
        """Returns the natural values of a vector; this is differentiable."""
        return {key: self.axes[key].natural(part) for key, part in self._parts(vector).items()}

    def raw(self, vector: Tensor) -> Hyper:
        """Returns the raw values of a vector."""
        return {key: self.axes[key].raw(part) for key, part in self._parts(vector).items()}

    def _parts(self, vector: Tensor) -> dict[str, Tensor]:
        parts = torch.split(vector, [shape.numel() for shape in self.shapes.values()])
        return {key: part.view(shape) for (key, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def pull_back(self, vector: Tensor, hypergradient: Hyper) -> Tensor:
        """Returns dE/dvector, [K], for the `hypergradient` dE/dnatural."""
        with torch.enable_grad():
            leaf = vector.detach().requires_grad_()
            natural = self.natural(leaf)
        adjoints = [hypergradient[key].to(natural[key]) for key in natural]
        (grad,) = torch.autograd.grad(list(natural.values()), [leaf], adjoints)
        return grad

    def project(self, vector: Tensor) -> Tensor:
        """Returns the nearest vector within the bounds."""
        return torch.clamp(vector, self.low, self.high)

    def shortened(self, step: Tensor) -> Tensor:
        """Returns a step, shortened until it at most halves or doubles 1 - beta and lr / (1 - momentum)."""
        logs = {
            key: step[self.entries(key)] * axis.unit * (LN10 if axis.near_one else 1.0)
            for key, axis in self.axes.items()
        }
        found = [logs[key].abs().max() for key, axis in self.axes.items() if axis.near_one]
        if RATE in logs and self.axes[RATE].transform.name == "log" and MOMENTUM in logs:
            rate, beta = logs[RATE], logs[MOMENTUM]
            found += [rate.max() - beta.min(), beta.max() - rate.min()]
        most = max((float(x) for x in found), default=0.0)
        return step * min(1.0, math.log(2.0) / most) if most else step

    def spread(self, numbers: Tensor) -> Tensor:
        """Returns a number for each hyperparameter, [hyperparameters], as one for each of their entries, [K]."""
        return numbers.repeat_interleave(torch.tensor([shape.numel() for shape in self.shapes.values()]))

    def _spread(self, numbers: dict[str, float]) -> Tensor:
        return self.spread(torch.tensor([numbers[key] for key in self.axes], dtype=torch.float64))
