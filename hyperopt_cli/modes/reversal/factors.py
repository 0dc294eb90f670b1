"""The rational factors at which reversible mode runs a problem, and the problem at them.

Exact arithmetic multiplies by rationals, so a momentum of .9 is run as 9/10, one of .8765432 as the rational of
smallest denominator within a relative 1e-6 of its distance from 1. The hypergradient is that of the run that was made:
every argument that is a factor takes its rational value, with the derivative that it has,

    lambda_t <- used_t + (lambda_t - stop(lambda_t))

and where the factor is not an argument itself (AdamW: 1 - lr weight_decay), one argument is moved to fit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.dynamics import Dynamics, Layout
from hyperopt_cli.errors import NonFiniteError, UsageError
from hyperopt_cli.optimizers.base import Arguments, Coupling, StepHyper
from hyperopt_cli.optimizers.exact import Rational, rational, rational_number
from hyperopt_cli.problem import Hyper, Problem

LARGEST_FACTOR = 1000


class Range(NamedTuple):
    """The least and the largest of the factors of single elements."""

    low: float
    high: float


Report = Fraction | dict[str, Fraction] | Range


class Factors:
    """The factors of every step of a run.

    They are computed on the host. Keep lambda there, or every step waits for the device.

    Attributes:
        couplings: of the optimizer, for the slots that the run keeps.
        fixed: whether they are the same at every step.
    """

    def __init__(self, dynamics: Dynamics, hyper: Hyper) -> None:
        self.couplings = dynamics.problem.optimizer.couplings(tuple(dynamics.start.slots))
        self.fixed = dynamics.problem.schedule is None
        self._dynamics, self._hyper = dynamics, {name: value.detach() for name, value in hyper.items()}
        self._step = lru_cache(maxsize=4)(self._made)
        self._last: dict[tuple[str, str], tuple[Tensor, Rational]] = {}

    def at(self, t: int) -> list[dict[str, Rational] | None]:
        """Returns the factor of every coupling, None for 1, by the names that the state is held under."""
        return self._step(0 if self.fixed else t)[0]

    def used_at(self, step_hyper: StepHyper, t: int) -> StepHyper:
        """Returns lambda_t with every factor's argument at the value in use, differentiable as before."""
        values = self._step(0 if self.fixed else t)[1]
        names = self._dynamics.layout.shapes
        return {**step_hyper, **{name: _moved(step_hyper.get(name), value, names) for name, value in values.items()}}

    def problem(self) -> Problem:
        """Returns the training run at these factors."""
        problem = self._dynamics.problem
        return replace(problem, schedule=lambda h, t: self.used_at(problem.hyper_at(h, t), t))

    def bits(self, t: int) -> float:
        """Returns the bits that the store grows by in a step, a parameter: log2(d/n) a factor, 64 for one of 0."""
        return sum(_bits(factor) for factor in self.at(t) if factor is not None)

    def report(self, t: int) -> dict[str, Report]:
        """Returns the factors of a step by their labels: one, one a parameter, or the range of those of elements."""
        return self._step(0 if self.fixed else t)[2]

    def _made(self, t: int) -> tuple[list[dict[str, Rational] | None], StepHyper, dict[str, Report]]:
        with torch.no_grad():
            arguments = self._arguments(t)
            factors: list[dict[str, Rational] | None] = []
            values: StepHyper = {}
            reports: dict[str, Report] = {}
            for coupling in self.couplings:
                if coupling.factor is None:
                    factors.append(None)
                    continue
                named = {name: self._rational(t, coupling, name, a) for name, a in arguments.items()}
                factors.append(_held(named, self._dynamics.layout, self._dynamics.like.device))
                used = {name: _used(coupling, arguments[name], by) for name, by in named.items()}
                values[coupling.factor.argument] = _one_if_alike(used)
                reports[coupling.factor.label] = _reported(named)
            return factors, values, reports

    def _rational(self, t: int, coupling: Coupling, name: str, arguments: Arguments) -> Rational:
        """The factor of one parameter; those of elements are found anew only where they are others."""
        assert coupling.factor is not None
        f = torch.as_tensor(coupling.factor.of(arguments), dtype=torch.float64).cpu()
        if not bool(f.isfinite().all()):
            raise NonFiniteError(t, coupling.factor.label)
        if float(f.abs().max()) > LARGEST_FACTOR:
            size = float(f.abs().max())
            raise UsageError(f"reversible: {coupling.factor.label} is {size:g} at step {t}; at most {LARGEST_FACTOR}")
        if f.numel() == 1:
            return rational_number(float(f))
        last = self._last.get((coupling.name, name))
        if last is None or not torch.equal(last[0], f):
            last = self._last[coupling.name, name] = f, Rational.of(*rational(f))
        return last[1]

    def _arguments(self, t: int) -> dict[str, Arguments]:
        """By parameter; under "" alone where all have the same."""
        optimizer, layout = self._dynamics.problem.optimizer, self._dynamics.layout
        step_hyper = tree_map(lambda x: x.cpu(), self._dynamics.plain_hyper_at(self._hyper, t))
        driven = [step_hyper[name] for name in self._dynamics.driven]
        names = layout.shapes if any(isinstance(value, Mapping) for value in driven) else [""]
        like = torch.empty(0, dtype=torch.float64)
        return {name: optimizer.arguments(step_hyper, name, like) for name in names}


def at_factors(problem: Problem, hyper: Hyper) -> Problem:
    """Returns the same run with every contraction at the rational that reversible mode uses.

    Any mode may run it: modes are compared at the same factors.
    """
    return Factors(Dynamics.of(problem, hyper), hyper).problem()


def _used(coupling: Coupling, arguments: Arguments, by: Rational) -> Tensor:
    """The value of the factor's argument at which the factor is the rational."""
    assert coupling.factor is not None
    given = torch.as_tensor(getattr(arguments, coupling.factor.argument), dtype=torch.float64)
    f = torch.as_tensor(coupling.factor.of(arguments), dtype=torch.float64)
    value = by.value.to(f.device)
    solved = torch.as_tensor(coupling.factor.solved(arguments, value), dtype=torch.float64)
    return torch.where(f == value, given, solved)


def _one_if_alike(used: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    first = next(iter(used.values()))
    return first if all(x.ndim == 0 and x == first for x in used.values()) else used


def _moved(given: Tensor | dict[str, Tensor] | None, used: Tensor | dict[str, Tensor], names: Iterable[str]) -> Any:
    """The value of `used`, the derivative of `given`; `names` are the parameters'."""
    if given is None:
        return used
    if isinstance(used, Mapping) or isinstance(given, Mapping):
        of = given if isinstance(given, Mapping) else dict.fromkeys(names, given)
        to = used if isinstance(used, Mapping) else dict.fromkeys(names, used)
        return {name: _moved(of.get(name), to[name], ()) for name in names}
    return used.to(given.device) + (given - given.detach())


def _held(named: dict[str, Rational], layout: Layout, device: torch.device) -> dict[str, Rational]:
    """The factors under the names that the state is held under, spread where elements differ."""
    first = next(iter(named.values()))
    if all(by.n.ndim == 0 and by.n == first.n and by.d == first.d for by in named.values()):
        return dict.fromkeys([""] if layout.packed else layout.shapes, first.to(device))
    if not layout.packed:
        return {name: by.to(device) for name, by in named.items()}
    n, d = (
        torch.cat([getattr(by, part).expand(layout.shapes[name]).reshape(-1) for name, by in named.items()])
        for part in ("n", "d")
    )
    return {"": Rational.of(n, d).to(device)}


def _reported(named: dict[str, Rational]) -> Report:
    if any(by.n.ndim for by in named.values()):
        values = torch.cat([by.value.reshape(-1) for by in named.values()])
        return Range(float(values.min()), float(values.max()))
    fractions = {name: Fraction(int(by.n), int(by.d)) for name, by in named.items()}
    return next(iter(fractions.values())) if len(set(fractions.values())) == 1 else fractions


def _bits(held: dict[str, Rational]) -> float:
    """The mean over all elements; held under one name or under every parameter's, each counted alike."""
    bits = [torch.where(by.n == 0, 64.0, -by.value.abs().log2()).mean() for by in held.values()]
    return float(torch.stack(bits).mean())
