"""A plain training run: E at its end, without any derivative in lambda.

Cost: T steps with 1 gradient each. Memory: 1 state.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from hyperopt_cli.checks.connectivity import check_connected
from hyperopt_cli.checks.constructs import check_constructs
from hyperopt_cli.dynamics.dynamics import Dynamics, State, train_step
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.errors import HopelessError, NonFiniteError
from hyperopt_cli.keeper import Keeper
from hyperopt_cli.modes.account import Account, OnStep
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.problem import Hyper, Problem, check_hyper
from hyperopt_cli.ranks.group import ALONE, Ranks


def plain_run(
    problem: Problem,
    hyper: Hyper,
    *,
    on_step: OnStep | None = None,
    keeper: Keeper | None = None,
    resume_from: dict[str, Any] | None = None,
    ranks: Ranks = ALONE,
    hopeless: Callable[[int, Tensor], bool] | None = None,
) -> Hypergradient:
    """Trains, and returns what a hypergradient does, with an empty `grad`.

    Args:
        problem: the training run.
        hyper: lambda.
        on_step: called after each inner step, as in a hypergradient.
        keeper: asked after each inner step whether it wants what another process can go on from.
        resume_from: what it saved, of the same problem and lambda.
        ranks: the processes that take this run together.
        hopeless: tells, after t steps and by their training losses [t], whether the run is to be stopped.

    Raises:
        NonFiniteError: a training loss or E is not finite.
        HopelessError: `hopeless` said so.
    """
    hyper = {name: value.detach() for name, value in hyper.items()}
    with surroundings(problem.precision):
        dynamics = Dynamics.of(problem, hyper)
        account = Account(problem.steps, dynamics.like, on_step, keeper, resume_from, ranks)
        state, begin = dynamics.start, 0
        if (saved := account.resume()) is not None:
            begin, state = saved["t"], State.from_state_dict(saved["state"], dynamics.like.device)
        for t in range(begin, problem.steps):
            state, value = train_step(dynamics, problem.batch(t), t, state, dynamics.hyper_at(hyper, t))
            account.counts.add_steps(1)
            account.step_done(t, value)
            if hopeless is not None and hopeless(t + 1, account.inner_loss[: t + 1]):
                account.finite.check()
                raise HopelessError(t + 1)
            account.save_if_due(partial(dict, t=t + 1, state=state.state_dict()))
        params = dynamics.layout.unpack(dynamics.result(state))
        account.finite.check()
        value = outer_objective(problem, params, hyper, differentiated=False).value
        return account.close(value, {}, params)


def objective_after(problem: Problem, hyper: Hyper, on_step: OnStep | None = None) -> float:
    """Returns E(lambda) after a plain training run; infinity where the run diverges.

    Args:
        problem: the training run.
        hyper: lambda.
        on_step: called after each inner step, as in a hypergradient.
    """
    try:
        return float(plain_run(problem, hyper, on_step=on_step).value)
    except NonFiniteError:
        return float("inf")


def check_differentiable(problem: Problem, hyper: Hyper) -> None:
    """Refuses, before the first training run, what its hypergradient would refuse.

    Raises:
        DetachedHyperparameterError: nothing depends on some key of `hyper`.
        UsageError: an operator cannot be differentiated.
    """
    check_hyper(hyper)
    with surroundings(problem.precision):
        dynamics = Dynamics.of(problem, hyper)
        check_constructs(dynamics, hyper)
        check_connected(dynamics, hyper)
