"""Is every hyperparameter connected to the computation? Asked of autograd's graph, before the run.

A derivative of zero is an answer; a key that nothing reads is a mistake (a misspelt name, a `.item()` on the way),
and a zero would hide it. One step is enough to tell nearly always. A key that it does not read is looked for at every
step of a horizon of up to 1,000, at the steps 1, 2, 4, 8, ... and T - 1 of a longer one, at the first step whose
lambda_t it reaches, and in every chunk of the outer objective.

On the way w_0 and the gradient of step 0 are evaluated twice: what differs between the two can't be replayed by any
mode.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from hyperopt_cli.errors import DetachedHyperparameterError, NonDeterministicError, UsageError
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper

EVERY_STEP = 1000


def check_connected(dynamics: Dynamics, hyper: Hyper) -> None:
    """Looks for every key of `hyper` in the graphs of w_0, a step and E.

    Raises:
        DetachedHyperparameterError: nothing depends on some keys.
        NonDeterministicError: w_0, or the loss or gradient of step 0, has two values.
        UsageError: the inner loss depends on no parameter.
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
    _check_replayed("init", list(named.values()), list(problem.initial(h).values()))
    yield list(named.values())
    params = {name: w.detach().requires_grad_() for name, w in named.items()}
    yield _first_step(dynamics, params, h)
    for arguments, _ in problem.outer_chunks():
        yield [problem.validation_loss(params, h, *arguments)]
    for t in _later(problem.steps):
        yield _step(dynamics, params, h, t)


def _later(steps: int) -> Sequence[int]:
    """The steps to look at after step 0."""
    last = steps - 1
    return range(1, steps) if steps <= EVERY_STEP else sorted({last, *(2**i for i in range(last.bit_length()))})


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


def _first_step(dynamics: Dynamics, params: Params, h: Hyper) -> list[Tensor]:
    """Step 0, whose gradient is taken twice."""
    outputs = _step(dynamics, params, h, 0)
    again = _step(dynamics, params, h, 0)
    _check_replayed("inner_loss", *(_loss_and_gradient(each[0], params) for each in (outputs, again)))
    return outputs


def _loss_and_gradient(loss: Tensor, params: Params) -> list[Tensor]:
    if not _leaves([loss]) & {id(w) for w in params.values()}:
        raise UsageError("inner_loss: depends on no parameter; there is nothing to train")
    grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, materialize_grads=True)
    return [loss, *grads]


def _step(dynamics: Dynamics, params: Params, h: Hyper, t: int) -> list[Tensor]:
    """L and s_{t+1} at w_0: the graph of a step does not depend on where it is taken."""
    step_hyper = dynamics.hyper_at(h, t)
    loss = dynamics.problem.training_loss(params, step_hyper, dynamics.problem.batch(t))
    zeros = {name: torch.zeros_like(w) for name, w in dynamics.start.params.items()}
    point = dynamics.point(dynamics.start, step_hyper, t)
    return [loss, *tree_flatten((point, dynamics.update(dynamics.start, zeros, step_hyper, t)))[0]]


def _check_replayed(what: str, once: list[Tensor], again: list[Tensor]) -> None:
    for x, y in zip(once, again, strict=True):
        x, y = x.detach(), y.detach()
        # on a GPU sums may be taken in another order from one time to the next
        slack = (1e-7 if x.device.type == "cpu" else 1e-3) * x.abs().max() if x.numel() else 0.0
        if not torch.equal(x.isnan(), y.isnan()) or bool(((x - y).abs() > slack).any()):
            raise NonDeterministicError(
                f"{what}: evaluated twice, it gave {_shown(x)} and {_shown(y)}; every draw must be a function of the "
                "batch (batch(t) carries a seed), and batch(t) a function of t"
            )


def _shown(x: Tensor) -> str:
    return repr(float(x)) if x.ndim == 0 else f"values of norm {float(torch.linalg.vector_norm(x))!r}"


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
