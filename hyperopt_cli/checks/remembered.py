"""What a loss remembers of other evaluations must not be a function of lambda, nor of the weights.

An anchor that is set at step 5, a teacher by its step, a rate that is stored once: to whoever takes a step again such a
value is a constant, and to the run it is none. Two ways find it, wherever Python keeps it:

- Before a run, tensors that depend on lambda at step 0, or on the weights behind the horizon, where nothing can have
  been kept yet, and that outlive the evaluation, are followed into the next ones (`flow.py`); in the first run those
  of every step, and into E too.
- After the first run, the steps are evaluated upwards, with weights and lambda moved at random, then E and the steps
  downwards at fixed ones; and once more with others. What is evaluated at fixed ones must be the same both times. So
  numbers are found, and whatever is set again.

Neither sees a number that is kept once for all, such as the best loss so far.

A loss may keep what is the same whatever lambda and the weights are (a mask, data by step), and what it only logs.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.checks.flow import Flow
from hyperopt_cli.checks.replayed import ROUNDED, leaves_of, slack, terms
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.kinds import code_of
from hyperopt_cli.errors import NonDeterministicError
from hyperopt_cli.problem import Chunked, Hyper, Problem

MOVED, SEED = 0.03, 31
FIRST_S, AT_MOST_S, SHARE = 0.2, 0.5, 0.02  # for the two ways, of a run; of many steps they take some, drawn by seed
_REFUSED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # what they have kept is there the next time


def first_loss(dynamics: Dynamics, hyper: Hyper) -> tuple[Tensor, list[Tensor]]:
    """Returns L of the first term of step 0, at s_0, before any other call of the loss, and what it keeps of lambda."""
    return _evaluated(dynamics, hyper, 0, "lambda")


def check_kept(losses: set[Any], dynamics: Dynamics, hyper: Hyper, of_lambda: list[Tensor]) -> None:
    """Checks, before a run, that the loss takes no tensor for a constant that it keeps.

    Args:
        losses: the code of those that were run before.
        dynamics: of the run.
        hyper: lambda.
        of_lambda: what `first_loss` found.

    Raises:
        NonDeterministicError: it does, or did in an earlier run.
    """
    with suppress(TypeError):  # nothing can refer to it weakly
        if (message := _REFUSED.get(_keeper(dynamics.problem))) is not None:
            raise NonDeterministicError(message)
    _check_unused(dynamics, hyper, of_lambda, (0,))
    if code_of(dynamics.problem.inner_loss) not in losses:
        _check_steps(dynamics, hyper)
    _check_behind(dynamics, hyper)


def _check_steps(dynamics: Dynamics, hyper: Hyper) -> None:
    """Of the weights, what is kept at any step but the first: the start of a run depends on no lambda."""
    kept: list[Tensor] = []
    order = torch.randperm(dynamics.problem.steps - 1, generator=torch.Generator().manual_seed(SEED))
    began_s = time.perf_counter()
    try:
        _evaluated(dynamics, hyper, 0, "w")
        num = int(FIRST_S / max(1e-9, time.perf_counter() - began_s))
        for t in sorted((1 + order[:num]).tolist()):
            kept += _check_unused(dynamics, hyper, kept, (t,))
            left = _evaluated(dynamics, hyper, t, "w")[1]
            kept += [*left, *_check_unused(dynamics, hyper, left, (t,))]
        if kept:
            with Flow(kept) as flow:
                value = _validation_loss(dynamics.problem, hyper, dynamics.layout.unpack(dynamics.start.params))
            if flow.depends(value):
                _refuse(dynamics.problem)
    except NonDeterministicError:
        raise
    except Exception:  # a batch that cannot be read, a teacher that is not there yet
        return


def check_still(problem: Problem, hyper: Hyper, first: Tensor, met: Tensor) -> None:
    """Checks, after a hypergradient, that L at step 0 is what it was: nothing has counted or drawn.

    Args:
        problem: the run.
        hyper: lambda.
        first: of `first_loss`.
        met: L of step 0 in the run; a compiled step rounds otherwise, and chunks add up to another number.

    Raises:
        NonDeterministicError: it is not.
    """
    again = _evaluated(Dynamics.of(problem, hyper), hyper, 0, None)[0].detach()
    away = [(again, bool((again - first).abs() > slack(first)))]
    if not isinstance(problem.batch(0), Chunked):
        away.append((met, bool((met.to(first) - first).abs() > ROUNDED * first.abs())))
    for value, differs in away:
        if differs:
            raise NonDeterministicError(
                f"inner_loss: at step 0 it gave {float(first)!r} at first and {float(value)!r} later; every draw must "
                "be a function of the batch (batch(t) carries a seed), and nothing may count how often it is called"
            )


def check_order(losses: set[Any], problem: Problem, hyper: Hyper, run_s: float) -> None:
    """Checks, after a run, that the steps before a step have no effect on its loss.

    The first run of a loss is checked at length.

    Args:
        losses: the code of those that were run before; this one is added.
        problem: the run.
        hyper: lambda.
        run_s: what it took.

    Raises:
        NonDeterministicError: it has one, through weights or lambda.
    """
    start = Dynamics.of(problem, hyper)
    _check_behind(start, hyper)  # a teacher of the step before is there now
    code = code_of(problem.inner_loss)
    if code in losses:
        return
    losses.add(code)
    drawn = torch.Generator().manual_seed(SEED)
    fixed = _moved(start.layout.unpack(start.point(start.start, start.hyper_at(hyper, 0), 0)), drawn)
    steps: Sequence[int] | None = None
    ways = []
    try:
        for _ in range(2):
            other = _moved(hyper, drawn)
            dynamics, weights = Dynamics.of(problem, other), _moved(fixed, drawn)
            began_s = time.perf_counter()
            _losses(dynamics, other, weights, (0,))
            if steps is None:
                step_s = max(1e-9, time.perf_counter() - began_s)
                num = int(min(problem.steps, max(AT_MOST_S, SHARE * run_s) / (4 * step_s)))
                if num < 2:
                    return
                steps = sorted(torch.randperm(problem.steps, generator=drawn)[:num].tolist())
            _losses(dynamics, other, weights, steps)
            E = _validation_loss(problem, hyper, fixed)
            ways.append([E, *_losses(start, hyper, fixed, steps, -1)])
    except Exception:  # at other weights it cannot be evaluated
        return
    for x, y in zip(*ways, strict=True):
        if not bool(((x - y).abs() <= slack(x)).all()) and bool((x.isfinite() | y.isfinite()).all()):
            _refuse(problem)


def _check_behind(dynamics: Dynamics, hyper: Hyper) -> None:
    """Of the weights, what is kept behind the horizon."""
    behind = dynamics.problem.steps
    try:
        _, kept = _evaluated(dynamics, hyper, behind, "w")
    except Exception:  # there is no batch, or no step before
        return
    _check_unused(dynamics, hyper, kept, (behind, behind + 1))


def _losses(dynamics: Dynamics, hyper: Hyper, weights: Any, steps: Sequence[int], order: int = 1) -> list[Tensor]:
    """Those of every term, with lambda_t, upwards, or downwards where `order` is -1."""
    losses: list[Tensor] = []
    for t in steps[::order]:
        step_hyper = dynamics.cast(dynamics.hyper_at(hyper, t))
        losses += [x.detach() for x in tree_leaves(step_hyper)]
        with torch.enable_grad():  # as training evaluates it: a hook needs a graph
            for term in list(terms(dynamics.loss_at(t)))[::order]:
                losses.append(term(leaves_of(weights), step_hyper).detach())
    return losses


def _validation_loss(problem: Problem, hyper: Hyper, weights: Any) -> Tensor:
    arguments, _ = problem.outer_chunks()[0]
    with torch.enable_grad():
        return problem.validation_loss(leaves_of(weights), hyper, *arguments).detach()


def _moved(tensors: dict[str, Tensor], drawn: torch.Generator) -> dict[str, Tensor]:
    """At random, each by a share of its size, or of one where it is zero."""

    def moved(x: Tensor) -> Tensor:
        size = x.detach().abs().mean() if x.numel() else torch.ones(())
        noise = torch.rand(x.shape, generator=drawn, dtype=torch.float64).to(x)
        return x.detach() + MOVED * torch.where(size > 0, size, 1.0).to(x) * noise

    return {name: moved(x) for name, x in tensors.items()}


def _check_unused(dynamics: Dynamics, hyper: Hyper, kept: list[Tensor], steps: Sequence[int]) -> list[Tensor]:
    """No loss of these steps depends on what is kept; returns what is kept of that anew."""
    left: list[Tensor] = []
    for t in steps if kept else ():
        try:
            with Flow(kept) as flow:
                value, _ = _evaluated(dynamics, hyper, t, None)
        except Exception:
            return left
        if flow.depends(value):
            _refuse(dynamics.problem)
        left += flow.left(but=[*kept, *left, value])
    return left


def _evaluated(dynamics: Dynamics, hyper: Hyper, t: int, followed: str | None) -> tuple[Tensor, list[Tensor]]:
    """L of the first term of step t, at s_0, and what is left of what depends on `followed`, "lambda" or "w"."""
    step_hyper = dynamics.hyper_at(hyper, min(t, dynamics.problem.steps - 1))
    params = dynamics.layout.unpack(dynamics.point(dynamics.start, step_hyper, 0))
    with torch.enable_grad():  # as training evaluates it: a hook needs a graph
        w = leaves_of(params)
        h = tree_map(lambda x: x.detach().requires_grad_(), step_hyper) if followed == "lambda" else step_hyper
        leaves = tree_leaves({"lambda": h, "w": w, None: []}[followed])
        loss = next(terms(dynamics.loss_at(t)))
        if followed is None:
            return loss(w, h), []
        with Flow(leaves) as flow:
            value = loss(w, h).detach()
    return value, flow.left(but=[*leaves, value])


def _refuse(problem: Problem) -> None:
    message = (
        "inner_loss: it keeps what depends on lambda or on the weights of a step, and takes it for a constant when it "
        "is evaluated again (a teacher, an anchor, a cache); what it uses of other steps has to be a "
        "parameter or a slot of the update rule. Make the loss anew before you use it again: it still keeps that"
    )
    with suppress(TypeError):  # nothing can refer to it weakly
        _REFUSED[_keeper(problem)] = message
    raise NonDeterministicError(message)


def _keeper(problem: Problem) -> Any:
    return getattr(problem.inner_loss, "__self__", problem.inner_loss)
