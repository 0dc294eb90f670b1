"""Central differences of a function of tensors along a direction, and whether they count.

    D(h) = (F(x + h v) - F(x - h v)) / 2h,      h = 1e-5, 1e-6, 1e-7, 1e-8, in float64

D(h) counts where every decision on the way (`decisions.py`) is the same at x and at both ends, and where it agrees
with the one a decade below it: smooth, and not lost in rounding. Along a direction of norm one over all parameters a
step of 1e-6 moves each of them by so little that a network of rectifiers mostly keeps all of its signs; along
independent standard normal numbers it hardly ever does.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.checks.decisions import Decisions

STEPS = (1e-5, 1e-6, 1e-7, 1e-8)
LOW_STEPS = (1e-1, 1e-2, 1e-3)  # of what cannot be computed in float64
LARGE = 1e4  # of the norm of what is moved, beside a direction of norm one
COUNTS = 1e-3  # the most that two differences may be apart, of their size
ROUNDING = 1e3  # units in the last place of F that a difference of nothing may show

Function = Callable[..., Sequence[Tensor]]


class Difference(NamedTuple):
    """The derivative DF v, as differences show it.

    Attributes:
        value: like what the function returns.
        error: how far two steps a decade apart are from each other, in the norm over all of `value`.
        size: the norm of `value`.
        errors: how far the steps are from each other in each tensor of `value`.
    """

    value: list[Tensor]
    error: float
    size: float
    errors: tuple[float, ...]


def reach(tensors: Sequence[Tensor]) -> float:
    """Returns the norm that a direction is to have: one, or more where larger numbers would swallow it."""
    return max(1.0, norm(tensors) / LARGE)


def norm(tensors: Sequence[Tensor]) -> float:
    """Returns the Euclidean norm over all tensors together."""
    return float(sum(x.detach().double().square().sum().cpu() for x in tensors) ** 0.5)


def decisions_of(function: Function, at: Sequence[Tensor]) -> Decisions:
    """Records what a function decides at a point."""
    here = Decisions()
    with here:
        function(*at)
    return here


def differenced(
    function: Function, at: Sequence[Tensor], direction: Sequence[Tensor], here: Decisions | None = None
) -> Difference | None:
    """Returns DF(at) direction; None where differences cannot judge.

    Args:
        function: of as many tensors.
        at: where, in float64; what is lower takes larger steps, and seldom counts.
        direction: like `at`, of norm about one.
        here: what it decides at `at`, where that is known.
    """
    last: tuple[list[Tensor], float] | None = None
    exact = all(x.dtype == torch.float64 for x in at)
    here = here or decisions_of(function, at)
    for h in STEPS if exact else LOW_STEPS:
        found = _at_both_ends(function, at, direction, h, here)
        if found is None:
            last = None
            continue
        value, size = found
        floor = ROUNDING * torch.finfo(torch.float64).eps * size / h
        if exact and not any(bool(x.any()) for x in value):  # it does not depend on what is moved
            return Difference(value, floor, 0.0, (floor,) * len(value))
        if last is not None:
            apart = norm([x - y for x, y in zip(value, last[0], strict=True)])
            of_value = norm(last[0])
            if exact and max(apart, of_value) <= floor:
                return Difference(last[0], floor, of_value, (floor,) * len(value))
            if apart <= COUNTS * of_value:
                errors = tuple(norm([x - y]) for x, y in zip(value, last[0], strict=True))
                return Difference(last[0], apart, of_value, errors)
        last = value, size
    return None


def _at_both_ends(
    function: Function, at: Sequence[Tensor], direction: Sequence[Tensor], h: float, here: Decisions
) -> tuple[list[Tensor], float] | None:
    """D(h) and the size of F; None where a decision differs or F is not finite."""
    ahead, behind = ([x + sign * h * v for x, v in zip(at, direction, strict=True)] for sign in (1.0, -1.0))
    with Decisions(here) as one:
        first = [x.detach() for x in function(*ahead)]
    if not one.same:
        return None
    with Decisions(here) as other:
        second = [x.detach() for x in function(*behind)]
    if not other.same or not all(bool(x.isfinite().all()) for x in (*first, *second)):
        return None
    value = [(x - y) / (2 * h) for x, y in zip(first, second, strict=True)]
    return value, norm(first)
