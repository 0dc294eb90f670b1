"""Is every hyperparameter connected to the computation? Asked of autograd's graph, before the run.

A derivative of zero is an answer; a key that nothing reads is a mistake (a misspelt name, a `.item()` on the way),
and a zero would hide it. One step is enough to tell nearly always. A key that it does not read is looked for at every
step of a horizon of up to 1,000, at the steps 1, 2, 4, 8, ... and T - 1 of a longer one, at the first step whose
lambda_t it reaches, and in every chunk of the outer objective.

On the way w_0 and the gradient of step 0 are evaluated twice: what differs between the two can't be replayed by any
mode. Nor can a loss that writes into what outlives it (`no_writes.py`).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hyperopt_cli.checks.no_writes import Unwritten
from hyperopt_cli.checks.replayed import check_equal, check_evaluated, terms
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.kinds import nodes_of
from hyperopt_cli.errors import DetachedHyperparameterError, UsageError
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Hyper

EVERY_STEP = 1000


def check_connected(dynamics: Dynamics, hyper: Hyper) -> None:
    """Looks for every key of `hyper` in the graphs of w_0, a step and E.

    Raises:
        DetachedHyperparameterError: nothing depends on some keys.
        NonDeterministicError: w_0, or the loss or gradient of step 0, has two values.
        UsageError: the inner loss depends on no parameter, writes into a tensor that was there before, or has a part
            that cannot be differentiated twice.
    """
    with torch.enable_grad():
        h = {name: value.detach().requires_grad_() for name, value in hyper.items()}
        missing = dict(h)
        for reached in _parts(dynamics, h):
            missing = _unreached(missing, reached)
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


def _parts(dynamics: Dynamics, h: Hyper) -> Iterator[set[int]]:
    """The leaves that are reached from what may depend on lambda, the cheap and telling outputs first."""
    problem = dynamics.problem
    named = problem.initial(h)
    check_equal("init", list(named.values()), list(problem.initial(h).values()))
    yield _leaves(list(named.values()))
    params = {name: w.detach().requires_grad_() for name, w in named.items()}
    yield _first_step(dynamics, params, h)
    for arguments, _ in problem.outer_chunks():
        yield _leaves([problem.validation_loss(params, h, *arguments)])
    for t in _later(problem.steps):
        yield _step(dynamics, params, h, t)


def _later(steps: int) -> Sequence[int]:
    """The steps to look at after step 0."""
    last = steps - 1
    return range(1, steps) if steps <= EVERY_STEP else sorted({last, *(2**i for i in range(last.bit_length()))})


def _unreached(missing: Hyper, reached: set[int]) -> Hyper:
    return {name: leaf for name, leaf in missing.items() if id(leaf) not in reached}


def _first_read(dynamics: Dynamics, h: Hyper, missing: Hyper) -> Iterator[int]:
    """The steps at which the schedule reads a missing key for the first time; the schedule alone is quickly asked."""
    for t in range(dynamics.problem.steps if dynamics.problem.schedule is not None else 0):
        rest = _unreached(missing, _leaves(tree_leaves(dynamics.hyper_at(h, t))))
        if len(rest) < len(missing):
            yield t
        missing = rest


def _first_step(dynamics: Dynamics, params: Params, h: Hyper) -> set[int]:
    """Step 0, whose gradient is taken twice; one chunk's graph at a time."""
    step_hyper, reached = dynamics.hyper_at(h, 0), set[int]()
    for once, again in zip(terms(dynamics.loss_at(0)), terms(dynamics.loss_at(0)), strict=True):
        with Unwritten("inner_loss"):
            first = once(params, step_hyper)
        outputs = [first, again(params, step_hyper)]
        leaves = _leaves(outputs[:1])
        if not leaves & {id(w) for w in params.values()}:
            raise UsageError("inner_loss: depends on no parameter; there is nothing to train")
        check_evaluated("inner_loss", *(_loss_and_gradient(loss, params) for loss in outputs))
        reached |= leaves
    return reached | _update(dynamics, step_hyper, 0)


def _loss_and_gradient(loss: Tensor, params: Params) -> list[Tensor]:
    grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, materialize_grads=True)
    return [loss, *grads]


def _step(dynamics: Dynamics, params: Params, h: Hyper, t: int) -> set[int]:
    """What L and s_{t+1} reach at w_0: the graph of a step does not depend on where it is taken."""
    step_hyper = dynamics.hyper_at(h, t)
    reached = [_leaves([loss(params, step_hyper)]) for loss in terms(dynamics.loss_at(t))]
    return set().union(*reached) | _update(dynamics, step_hyper, t)


def _update(dynamics: Dynamics, step_hyper: StepHyper, t: int) -> set[int]:
    ones = {name: torch.ones_like(w) for name, w in dynamics.start.params.items()}  # a rule may divide by a norm
    point = dynamics.point(dynamics.start, step_hyper, t)
    return _leaves(tree_leaves((point, dynamics.update(dynamics.start, ones, step_hyper, t))))


def _leaves(outputs: list[Tensor]) -> set[int]:
    """The ids of every leaf that the graphs of `outputs` reach."""
    found = {id(x) for x in outputs if x.is_leaf and x.requires_grad}
    return found | {id(node.variable) for x in outputs for node in nodes_of(x) if hasattr(node, "variable")}
