"""What each mode evaluates and stores over a horizon, known before the run."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.modes.adjoint.binomial import num_forward_steps
from hyperopt_cli.problem import Hyper

MAX_ASKED = 2000  # steps of whose lambda_t it is asked what moves it
MAX_RECOMPUTATION = 10  # steps taken over the horizon; beyond it no row of slots is of interest


class Counts(NamedTuple):
    """Inner steps, gradients and Hessian-vector products, as in a hypergradient's `stats`."""

    num_steps: int
    num_gradients: int
    num_hvps: int

    @classmethod
    def of_forward(cls, columns: Sequence[int]) -> "Counts":
        """Counts what forward mode evaluates, given the columns carried at each step."""
        return cls(len(columns), len(columns), sum(columns))

    @classmethod
    def of_reverse(cls, steps: int, slots: int | None) -> "Counts":
        """Counts what reverse mode evaluates with so many states kept; None: all of them."""
        there = steps if slots is None else num_forward_steps(steps, slots)
        return cls(there, there + steps, steps)

    @classmethod
    def of_reversible(cls, steps: int) -> "Counts":
        """Counts what reversible mode evaluates: T steps, 2 T gradients and T HVPs."""
        return cls(steps, 2 * steps, steps)


def numbers_of_slots(steps: int, most: int) -> list[int]:
    """Returns powers of two and the square root of T where at most 10 T steps are taken; and `most`.

    Args:
        steps: T.
        most: as many as fit.

    Returns:
        Numbers of slots below T, the largest first.
    """
    sensible = {2**i for i in range(1, steps.bit_length())} | {math.isqrt(steps)}
    quick = {s for s in sensible if Counts.of_reverse(steps, s).num_steps <= MAX_RECOMPUTATION * steps}
    return sorted((s for s in quick | {most} if 1 <= s < steps), reverse=True)


def columns_carried(dynamics: Dynamics, hyper: Hyper) -> list[int]:
    """Counts the columns that forward mode carries at each step: w_0 or a lambda_t so far depends on them."""
    steps = dynamics.problem.steps
    carried = _moved(dynamics.initial, hyper)
    if dynamics.problem.schedule is None:
        return [int((carried | _moved(lambda h: dynamics.plain_hyper_at(h, 0), hyper)).sum())] * steps
    numbers: list[int] = []
    block = math.ceil(steps / MAX_ASKED)  # of a long horizon every so many steps are asked, and stand for the others
    for t in range(0, steps, block):
        if not carried.all():
            carried |= _moved(lambda h: dynamics.plain_hyper_at(h, t), hyper)  # noqa: B023
        numbers += [int(carried.sum())] * min(block, steps - t)
    return numbers


def _moved(function: Callable[[Hyper], Any], hyper: Hyper) -> Tensor:
    """Which elements of lambda the outputs of `function` depend on, [K], by one vector-Jacobian product."""
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in hyper.items()}
        outputs = [y for y in tree_leaves(function(leaves)) if y.requires_grad]
    inputs = list(leaves.values())
    if not outputs:
        return torch.zeros(sum(x.numel() for x in inputs), dtype=torch.bool)
    grads = torch.autograd.grad(outputs, inputs, [_generic(y) for y in outputs], materialize_grads=True)
    return torch.cat([(grad != 0).flatten().cpu() for grad in grads])


def _generic(like: Tensor) -> Tensor:
    """An adjoint under which the derivatives of several outputs do not cancel, without a draw from a generator."""
    golden = (math.sqrt(5) - 1) / 2
    return (1 + torch.arange(like.numel(), dtype=torch.float64) * golden % 1).view(like.shape).to(like)
