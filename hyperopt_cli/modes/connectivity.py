"""Is every hyperparameter connected to the computation? Asked of autograd's graph, before the run.

A derivative of zero is an answer; a key that nothing reads is a mistake (a misspelt name, a `.item()` on the way),
and a zero would hide it. One step is enough to tell nearly always. A key that only later steps read (a window of a
schedule, a loss that depends on the batch) is looked for at the steps 0, 1, 2, 4, 8, ... and T - 1, and then at the
first step whose lambda_t it reaches.

On the way the first step is evaluated twice: a loss that differs between the two can't be replayed by any mode.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from hyperopt_cli.errors import DetachedHyperparameterError, NonDeterministicError
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.problem import Hyper


def check_connected(dynamics: Dynamics, hyper: Hyper) -> None:
    """Looks for every key of `hyper` in the graphs of w_0, a step and E.

    Raises:
        DetachedHyperparameterError: nothing depends on some keys.
        NonDeterministicError: the inner loss of step 0 has two values.
    """
    with torch.enable_grad():
        h = {name: value.detach().requires_grad_() for name, value in hyper.items()}
        missing = dict(h)
        for outputs in _parts(dynamics, h):
            missing = _unreached(missing, outputs)
            if not missing:
                return
        for t in _first_read(dynamics, h, missing):
            missing = _unreached(missing, _step(dynamics, dynamics.problem.initial(hyper), h, t))
    if not missing:
        return
    names = list(missing)
    arguments = ", ".join(dynamics.problem.optimizer.argument_names())
    raise DetachedHyperparameterError(
        names,
        f"hyper: nothing depends on {', '.join(map(repr, names))}; a key must be an argument of "
        f"{type(dynamics.problem.optimizer).__name__} ({arguments}) that is in use, or be read by init, schedule, "
        "inner_loss or outer_loss without detach(), item() or float() on the way",
    )


def _parts(dynamics: Dynamics, h: Hyper) -> Iterator[list[Tensor]]:
    """The outputs that may depend on lambda, the cheap and telling ones first."""
    problem = dynamics.problem
    named = problem.initial(h)
    yield list(named.values())
    params = {name: w.detach() for name, w in named.items()}
    last = problem.steps - 1
    for t in sorted({0, 1 if last else 0, last, *(2**i for i in range(last.bit_length()))}):
        yield _step(dynamics, params, h, t)
        if t == 0:
            arguments, _ = problem.outer_chunks()[0]
            yield [problem.outer_loss(params, h, *arguments)]


def _unreached(missing: Hyper, outputs: list[Tensor]) -> Hyper:
    reached = _leaves(outputs)
    return {name: leaf for name, leaf in missing.items() if id(leaf) not in reached}


def _first_read(dynamics: Dynamics, h: Hyper, missing: Hyper) -> Iterator[int]:
    """The steps at which the schedule reads a missing key for the first time; the schedule alone is quickly asked."""
    for t in range(dynamics.problem.steps if dynamics.problem.schedule is not None else 0):
        rest = _unreached(missing, tree_flatten(dynamics.hyper_at(h, t))[0])
        if len(rest) < len(missing):
            yield t
        missing = rest


def _step(dynamics: Dynamics, params: dict[str, Tensor], h: Hyper, t: int) -> list[Tensor]:
    """L and s_{t+1} at w_0: the graph of a step does not depend on where it is taken."""
    step_hyper = dynamics.hyper_at(h, t)
    batch = dynamics.problem.batch(t)
    loss = dynamics.problem.inner_loss(params, step_hyper, batch)
    if t == 0:
        _check_replayed(dynamics, params, h, loss)
    zeros = {name: torch.zeros_like(w) for name, w in dynamics.start.params.items()}
    point = dynamics.point(dynamics.start, step_hyper, t)
    return [loss, *tree_flatten((point, dynamics.update(dynamics.start, zeros, step_hyper, t)))[0]]


def _check_replayed(dynamics: Dynamics, params: dict[str, Tensor], h: Hyper, first: Tensor) -> None:
    with torch.no_grad():
        again = dynamics.problem.inner_loss(params, dynamics.hyper_at(h, 0), dynamics.problem.batch(0))
    if not torch.allclose(first.detach(), again, rtol=1e-3, atol=0.0, equal_nan=True):
        raise NonDeterministicError(
            f"inner_loss: step 0 gave {float(first.detach())!r} and, evaluated again, {float(again)!r}; "
            "every draw must be a function of the batch (batch(t) carries a seed), and batch(t) a function of t"
        )


def _leaves(outputs: list[Tensor]) -> set[int]:
    """The ids of every leaf that the graphs of `outputs` reach."""
    found = {id(x) for x in outputs if x.is_leaf and x.requires_grad}
    stack = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack += [following for following, _ in node.next_functions if following is not None]
    return found
