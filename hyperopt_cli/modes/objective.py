"""The outer objective E at the end of a run, and its gradients in w_T and lambda.

E = sum_i weight_i E_i(R(s_T), lambda)       over fixed chunks i, one chunk's graph in memory at a time

Several processes may have chunks of their own, or none: each adds up its own, then `across` all their sums.

Its products have the parameters' precision, whatever that of the inner gradient's (`dynamics/precision.py` says why).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.checks.outer import OuterJudge
from hyperopt_cli.dynamics.kinds import Leaving
from hyperopt_cli.dynamics.precision import products_in
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.program.raised import as_due
from hyperopt_cli.stopping import may_stop


class Objective(NamedTuple):
    """The outer objective: E [], dE/dR named like the parameters, and the direct dE/dlambda like `hyper`."""

    value: Tensor
    by_params: Params
    by_hyper: Hyper


def outer_objective(
    problem: Problem,
    params: Params,
    hyper: Hyper,
    between: Callable[[], None] = may_stop,
    judge: OuterJudge | None = None,
    differentiated: bool = True,
) -> Objective:
    """Evaluates E and its gradients in w_T and lambda.

    Args:
        problem: whose `outer_loss` it is.
        params: R(s_T), named.
        hyper: lambda.
        between: called between two chunks, where all of them are here; may raise.
        judge: says how each chunk is differentiated; None: by autograd, whatever that gives.
        differentiated: whether the gradients are wanted; else they are zeros.
    """
    w = {name: p.detach().requires_grad_() for name, p in params.items()}
    h = {name: p.detach().requires_grad_() for name, p in hyper.items()}
    leaves = [*w.values(), *h.values()]
    value: Tensor | None = None
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    with products_in(None):
        chunks, across = problem.outer_chunks(), problem.outer_across
        drawn = None if judge is None else judge.drawn(len(chunks))
        for i, (arguments, weight) in enumerate(chunks):
            if i and across is None:  # of several processes, each may have another number of chunks
                between()

            def term(*flat: Tensor, weight: float = weight, arguments: tuple[Any, ...] = arguments) -> Tensor:
                named = dict(zip(w, flat, strict=False)), dict(zip(h, flat[len(w) :], strict=True))
                with Leaving() as leaving:
                    value = problem.validation_loss(*named, *as_due(arguments))
                leaving.mark(value)
                return weight * value

            unjudged = by_autograd if differentiated else without_derivatives
            part, grads = unjudged(term, leaves) if judge is None else judge.gradient(term, leaves, i == drawn)
            totals = [total + grad for total, grad in zip(totals, grads, strict=True)]
            value = part if value is None else value + part
    if across is not None:  # some of its chunks are here, or none
        begun = leaves[0].new_zeros(()).detach() if value is None else value.to(leaves[0])
        value, totals = across.summed((begun, totals))
    assert value is not None
    named = dict(zip([*w, *(f"lambda/{name}" for name in h)], totals, strict=True))
    return Objective(value, {name: named[name] for name in w}, {name: named[f"lambda/{name}"] for name in h})


def without_derivatives(objective: Callable[..., Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Returns E, or a term of it, and zeros in place of its derivatives in `leaves`; no graph is made."""
    with torch.no_grad():
        return objective(*leaves), [torch.zeros_like(x) for x in leaves]


def by_autograd(objective: Callable[..., Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Returns E, or a term of it, and its derivatives in `leaves`; zero where nothing is connected."""
    with torch.enable_grad():
        value = objective(*leaves)
    if not value.requires_grad:
        return value, [torch.zeros_like(x) for x in leaves]
    return value.detach(), torch.autograd.grad(value, leaves, materialize_grads=True)
