"""The adjoint sweep, over any source of the run's past: the recursion of reverse mode and of reversible mode.

    alpha_T = dE/ds_T
    dE/dlambda += alpha_{t+1} B_t,    alpha_t = alpha_{t+1} A_t        for t = T-1 ... 0

One step of it is the vector-Jacobian product of the update rule, then that of the gradient:

    (a_s, a_g, a_lambda) = alpha_{t+1} dU,     a_s += (H a_g) dP,     a_lambda += (d2L/dw dlambda)^T a_g

Franceschi et al. 2017, algorithm 1 (Reverse-HG), https://proceedings.mlr.press/v70/franceschi17a; the sweep of
Maclaurin et al. 2015, algorithm 2, https://arxiv.org/abs/1502.03492, for any update rule.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hyperopt_cli.modes.base import Account, Hypergradient
from hyperopt_cli.modes.dynamics import Dynamics, State
from hyperopt_cli.modes.engines import gradient, gradient_and_pullback
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Hyper


class Past(NamedTuple):
    """One step of the run, met again on the way back.

    Attributes:
        t: which.
        state: s_t.
        hyper: lambda_t.
        grads: g_t, held like the state.
        pullback: `u -> (H u, (d2L/dw dlambda)^T u)` at s_t, named; may be called once.
    """

    t: int
    state: State
    hyper: StepHyper
    grads: Params
    pullback: Callable[[Params], tuple[Params, StepHyper]]


def run(dynamics: Dynamics, hyper: Hyper, account: Account) -> Iterator[State]:
    """Plain training: s_0, s_1, ..., s_T."""
    state = dynamics.start
    yield state
    for t in range(dynamics.problem.steps):
        state, value = train_step(dynamics, hyper, t, state, account)
        account.inner_loss[t] = value
        account.watch(t, "the training loss", value)
        account.step_done("forward", t + 1, dynamics.problem.steps)
        yield state


def train_step(dynamics: Dynamics, hyper: Hyper, t: int, state: State, account: Account) -> tuple[State, Tensor]:
    """s_t -> s_{t+1}, and L."""
    step_hyper = dynamics.hyper_at(hyper, t)
    point = dynamics.layout.unpack(dynamics.point(state, step_hyper, t))
    value, g = gradient(dynamics.loss_at(t), point, step_hyper)
    account.num_steps += 1
    account.num_gradients += 1
    return dynamics.update(state, dynamics.layout.pack(g), step_hyper, t), value


def linearise(dynamics: Dynamics, hyper: Hyper, t: int, state: State, account: Account) -> Past:
    """The gradient at s_t, ready to be differentiated."""
    step_hyper = dynamics.hyper_at(hyper, t)
    point = dynamics.layout.unpack(dynamics.point(state, step_hyper, t))
    _, g, pullback = gradient_and_pullback(dynamics.loss_at(t), point, step_hyper)
    account.num_gradients += 1
    return Past(t, state, step_hyper, dynamics.layout.pack(g), pullback)


def swept_back(
    dynamics: Dynamics, hyper: Hyper, end: State, past: Iterator[Past], account: Account, num_swept: int | None = None
) -> Hypergradient:
    """The hypergradient from s_T and the run on the way back, which may stop short of its beginning."""
    problem = dynamics.problem
    params = dynamics.layout.unpack(dynamics.result(end))
    objective = outer_objective(problem, params, hyper)
    account.watch(problem.steps, "the outer objective", objective.value)
    adjoint = _result_adjoint(dynamics, end, objective.by_params)
    grad = sweep(dynamics, hyper, adjoint, past, account, problem.steps if num_swept is None else num_swept)
    return account.close(objective.value, {name: d + grad[name] for name, d in objective.by_hyper.items()}, params)


def sweep(
    dynamics: Dynamics, hyper: Hyper, adjoint: State, past: Iterator[Past], account: Account, num_swept: int
) -> Hyper:
    """The recursion, over any source of the run's last `num_swept` steps, the last one first."""
    total = {name: torch.zeros_like(value) for name, value in hyper.items()}
    waiting: list[tuple[int, StepHyper]] = []
    for done, step in enumerate(past, start=1):
        adjoint, a_at = adjoint_step(dynamics, adjoint, step, account)
        waiting.append((step.t, a_at))
        # lambda may lie on the host: the adjoints of lambda_t go there once in many steps, so that no step waits
        if done == num_swept or len(waiting) >= account.every:
            total = _pulled_back(dynamics, hyper, waiting, total)
            waiting.clear()
        account.watch(step.t, "the adjoint", torch.stack([x.sum().double() for x in adjoint.params.values()]))
        account.step_done("backward", done, num_swept)
        del step  # its gradient's graph, before the next one is made
    if num_swept < dynamics.problem.steps:
        return total
    with torch.enable_grad():
        h = tree_map(_leaf, hyper)
        start = dynamics.initial(h)
    (by_init,) = _vjp(start, (h,), adjoint)
    return {name: total[name] + by_init[name] for name in total}


def _pulled_back(dynamics: Dynamics, hyper: Hyper, waiting: list[tuple[int, StepHyper]], total: Hyper) -> Hyper:
    """`total` and the adjoints of lambda_t, pulled back through the schedule."""
    for t, a_at in waiting:
        with torch.enable_grad():
            h = tree_map(_leaf, hyper)
            step_hyper = dynamics.plain_hyper_at(h, t)
        (by_step,) = _vjp(step_hyper, (h,), a_at)
        total = {name: total[name] + by_step[name] for name in total}
    return total


def adjoint_step(dynamics: Dynamics, adjoint: State, past: Past, account: Account) -> tuple[State, StepHyper]:
    """alpha_{t+1} -> alpha_t, and the adjoint of lambda_t."""
    layout, t = dynamics.layout, past.t
    with torch.enable_grad():
        state, at, g = tree_map(_leaf, (past.state, past.hyper, past.grads))
        point = dynamics.point(state, at, t)
        after = dynamics.update(state, g, at, t)
    a_state, a_g, a_at = _vjp(after, (state, g, at), adjoint)
    account.num_hvps += 1
    a_point, a_at_loss = past.pullback(layout.unpack(a_g))
    a_state_point, a_at_point = _vjp(point, (state, at), layout.pack(a_point))
    a_at = tree_map(lambda x, y, z: x + y + z, a_at, a_at_loss, a_at_point)
    return tree_map(torch.add, a_state, a_state_point), a_at


def _result_adjoint(dynamics: Dynamics, end: State, by_params: Params) -> State:
    """alpha_T = dE/dR dR/ds_T."""
    with torch.enable_grad():
        leaf = tree_map(_leaf, end)
        outcome = dynamics.result(leaf)
    adjoint: State = _vjp(outcome, (leaf,), dynamics.layout.pack(by_params))[0]
    return adjoint


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _vjp(outputs: Any, inputs: Any, adjoints: Any) -> Any:
    """Adjoints of `inputs` (a tuple of trees) given those of `outputs` (a tree); zero where nothing is connected."""
    leaves, spec = tree_flatten(inputs)
    pairs = [(y, a.to(y)) for y, a in zip(tree_leaves(outputs), tree_leaves(adjoints), strict=True) if y.requires_grad]
    if not pairs:
        return tree_unflatten([torch.zeros_like(x) for x in leaves], spec)
    grads = torch.autograd.grad([y for y, _ in pairs], leaves, [a for _, a in pairs], materialize_grads=True)
    return tree_unflatten(list(grads), spec)
