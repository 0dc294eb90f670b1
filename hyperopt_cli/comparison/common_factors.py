"""One set of contraction factors for every mode.

Reversible mode multiplies by rationals near the recipe's momenta and decays, and differentiates the run at them. Other
modes would differentiate another run, so they get the same values (`modes/reversal/factors.py`). Reversible mode itself
gets the recipe's: a rational near a rational may be a simpler one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.modes import Mode
from hyperopt_cli.modes.reversal.factors import Factors, Range, Report, at_factors
from hyperopt_cli.modes.reversible import refusal
from hyperopt_cli.problem import Hyper, Problem

# Steps that are looked at for the report.
MAX_STEPS = 64
# Relative: less than this is the rounding of the way there, not another value.
ROUNDING = 1e-10


@dataclass(frozen=True)
class FactorFrom:
    """A contraction factor as text, and the step from which on it holds.

    The text is a fraction such as `9/10`, one for each parameter, or the range over elements.
    """

    step: int
    factor: str | dict[str, str]


@dataclass(frozen=True)
class Moved:
    """A hyperparameter that a rational factor moves: its value as written and as used, where it moves farthest."""

    step: int
    written: float
    used: float

    @property
    def relative(self) -> float:
        """The relative difference of the value in use from the one that was written."""
        return abs(self.used - self.written) / max(abs(self.written), 1e-300)


@dataclass(frozen=True)
class CommonFactors:
    """The rational factors of reversible mode, at which every mode ran.

    Attributes:
        in_use: the factors by name, e.g. `momentum`, each with the steps from which on it has another value.
        moved: the arguments of the optimizer whose values differ from those written.
    """

    in_use: dict[str, list[FactorFrom]]
    moved: dict[str, Moved]

    def first_and_last(self) -> dict[str, Any]:
        """Returns each factor, or its first and last where it changes, like `stats["factors"]` of reversible mode."""
        return {
            label: entries[0].factor if len(entries) == 1 else (entries[0].factor, entries[-1].factor)
            for label, entries in self.in_use.items()
        }


class Runs(NamedTuple):
    """The problem that each mode differentiates.

    Attributes:
        written: the problem as it is.
        common: the problem at the rational factors, or as it is where no mode needs them.
        report: the rational factors; None where no mode needs them.
    """

    written: Problem
    common: Problem
    report: CommonFactors | None

    def of(self, mode: Mode) -> Problem:
        """Returns the problem that `mode` differentiates: reversible mode finds its factors from the written one."""
        return self.written if mode.in_integers else self.common


def at_common_factors(problem: Problem, hyper: Hyper, modes: Iterable[Mode]) -> Runs:
    """Returns `problem` at the factors of reversible mode, if that is among `modes` and can run it."""
    if not any(mode.in_integers for mode in modes) or refusal(problem, hyper) is not None:
        return Runs(problem, problem, None)
    common = at_factors(problem, hyper)
    steps = sorted({round(k * (problem.steps - 1) / (MAX_STEPS - 1)) for k in range(MAX_STEPS)})

    # Every factor by its label, with each step from which on it has another value.
    factors = Factors(Dynamics.of(problem, hyper), hyper)
    in_use: dict[str, list[FactorFrom]] = {}
    for t in steps:
        for label, report in factors.report(t).items():
            entries, shown = in_use.setdefault(label, []), _shown(report)
            if not entries or entries[-1].factor != shown:
                entries.append(FactorFrom(t, shown))

    # The arguments that had to move, each at the step and element where it moved farthest.
    farthest: dict[str, Moved] = {}
    for t in steps:
        written, used = problem.hyper_at(hyper, t), common.hyper_at(hyper, t)
        for name in set(used) & set(problem.optimizer.argument_names()):
            default = getattr(problem.optimizer, name)
            moved = _farthest(t, written.get(name, default), used[name], default)
            if moved.relative > ROUNDING and (name not in farthest or moved.relative > farthest[name].relative):
                farthest[name] = moved
    return Runs(problem, common, CommonFactors(in_use, dict(sorted(farthest.items()))))


def _shown(report: Report) -> str | dict[str, str]:
    """Returns a factor as text: `9/10`, one such text for each parameter, or a range over elements."""
    if isinstance(report, Fraction):
        return str(report)
    if isinstance(report, Range):
        return f"{report.low:.9g} to {report.high:.9g}"
    return {name: str(factor) for name, factor in report.items()}


def _farthest(t: int, written: Any, used: Tensor | dict[str, Tensor], default: float) -> Moved:
    if isinstance(used, Mapping):
        of = written if isinstance(written, Mapping) else dict.fromkeys(used, written)
        each = (_farthest(t, of.get(name, default), x, default) for name, x in used.items())
        return max(each, key=lambda moved: moved.relative)
    y = torch.as_tensor(used, dtype=torch.float64).detach().cpu()
    x = torch.as_tensor(written, dtype=torch.float64).detach().cpu().expand(y.shape)
    worst = int((x - y).abs().argmax())
    return Moved(t, float(x.flatten()[worst]), float(y.flatten()[worst]))
