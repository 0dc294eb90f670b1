"""E at the end of a plain training run, without any derivative in lambda: what a hypergradient predicts the changes of.

Cost: T steps with 1 gradient each. Memory: 1 state.
"""

from hyperopt_cli.dynamics.dynamics import Dynamics, train_step
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.errors import NonFiniteError
from hyperopt_cli.modes.account import Account, OnStep
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.stopping import may_stop


def objective_after(problem: Problem, hyper: Hyper, on_step: OnStep | None = None) -> float:
    """Returns E(lambda) after a plain training run; infinity where the run diverges.

    Args:
        problem: the training run.
        hyper: lambda.
        on_step: called after each inner step, as in a hypergradient.
    """
    with surroundings(problem.precision):
        dynamics = Dynamics.of(problem, hyper)
        account, state = Account(problem.steps, dynamics.like, on_step), dynamics.start
        try:
            for t in range(problem.steps):
                step_hyper = dynamics.hyper_at(hyper, t)
                state, value = train_step(dynamics, problem.batch(t), t, state, step_hyper)
                account.step_done(t, value)
                may_stop()
            account.finite.check()
        except NonFiniteError:
            return float("inf")
        value = outer_objective(problem, dynamics.layout.unpack(dynamics.result(state)), hyper).value
    return float(value) if value.isfinite() else float("inf")
