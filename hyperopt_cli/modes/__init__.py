"""Modes: orders of multiplication for the derivative of a training run, one a file. All of them give `dE/dlambda`.

| mode | time | memory in states | use it for |
|---|---|---|---|
| forward | T (1 gradient + K tangents) | K + 1 | few hyperparameters, long horizons |
| reverse | T (2 gradients + 1 HVP) | T, or `slots` | many hyperparameters |
| reversible | as reverse, and integer arithmetic | 1 and a store | many, over a horizon too long to keep |
| auto | the quickest of these that fits the memory | | not knowing |
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from hyperopt_cli.checks.connectivity import check_connected
from hyperopt_cli.checks.constructs import check_constructs
from hyperopt_cli.checks.remembered import check_kept, check_order, check_still, first_loss
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.errors import UsageError
from hyperopt_cli.keeper import Keeper
from hyperopt_cli.modes.account import Account, OnStep
from hyperopt_cli.modes.auto import Auto
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.forward import Forward
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.planning.plan import Plan, plan
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.modes.reverse import Reverse
from hyperopt_cli.modes.reversible import Reversible
from hyperopt_cli.problem import Hyper, Problem, check_hyper
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.registry import MODES as REGISTERED
from hyperopt_cli.registry import load

__all__ = [
    "MODES",
    "Auto",
    "Forward",
    "Hypergradient",
    "Keeper",
    "Measurements",
    "Mode",
    "Plan",
    "Reverse",
    "Reversible",
    "hypergradient",
    "plan",
]

MODES: dict[str, type[Mode]] = {name: load(entry.path) for name, entry in REGISTERED.items()}


def hypergradient(
    problem: Problem,
    hyper: Hyper,
    mode: str | Mode = "forward",
    *,
    on_step: OnStep | None = None,
    keeper: Keeper | None = None,
    resume_from: dict[str, Any] | None = None,
    measurements: Measurements | None = None,
    ranks: Ranks = ALONE,
    wanted: Callable[[float], bool] | None = None,
) -> Hypergradient:
    """Returns E at the end of the run and its derivative in all of `hyper`: exact unless `stats["bias"]` is there.

    Args:
        problem: the training run.
        hyper: lambda, floating-point tensors of any shape.
        mode: a name in `MODES`, or an instance such as `Forward(columns_at_once=4)`.
        on_step: called after each inner step with the phase, the steps done and the steps in the phase.
        keeper: asked after each inner step whether it wants what another process can go on from.
        resume_from: what it saved, to go on from there: of the same problem, lambda and mode. The result has the same
            bits as that of a run which was never interrupted. It is emptied.
        measurements: what hypergradients of this training run have measured before: the engine is chosen once, a step
            compiled once. Whoever takes many gives one object to all of them; None: nothing is known.
        ranks: the processes that take this run together; where they divide its batches, they are `Chunked` across them.
        wanted: asked, by modes with a backward sweep, whether the derivative is wanted once E is known; if not, the
            sweep is spared, and `grad` is empty.

    Returns:
        `value` [], `grad` like `hyper`, `params` (w_T) and `stats`.

    Raises:
        DetachedHyperparameterError: nothing depends on some key of `hyper`.
        NonFiniteError: a loss, tangent or hypergradient is not finite; `step` says at which inner step.
        NonDeterministicError: w_0 or the same step has two values.
        UsageError: the inner loss depends on no parameter, an operator lacks the derivative that an engine takes, or a
            parameter is not real or not floating-point.
        TypeError: an entry of `hyper` or of lambda_t is not a floating-point tensor.
        ValueError: unknown mode, no parameter, or an argument of the optimizer that is no scalar and no mapping.

    Example:
        Ten steps of gradient descent on x^2 from x = 1: E = (1 - 2 lr)^20 and dE/dlr = -40 (1 - 2 lr)^19.

        >>> import torch
        >>> from hyperopt_cli import Problem, hypergradient, optimizers
        >>> problem = Problem(
        ...     init={"x": torch.tensor(1.0, dtype=torch.float64)},
        ...     inner_loss=lambda params, hyper, batch: params["x"] ** 2,
        ...     outer_loss=lambda params, hyper: params["x"] ** 2,
        ...     batch=lambda t: None,
        ...     optimizer=optimizers.SGD(),
        ...     steps=10,
        ... )
        >>> out = hypergradient(problem, {"lr": torch.tensor(0.1, dtype=torch.float64)})
        >>> print(f"{out.value.item():.6f} {out.grad['lr'].item():.6f}")
        0.011529 -0.576461
    """
    check_hyper(hyper)
    if torch.is_inference_mode_enabled():
        raise UsageError("hypergradient: nothing is differentiated under torch.inference_mode(); call it outside")
    if isinstance(mode, str):
        if mode not in MODES:
            raise ValueError(f"mode: got {mode!r}; allowed are {', '.join(MODES)}, or an instance of one")
        mode = MODES[mode]()
    if not isinstance(mode, Mode):
        raise TypeError(f"mode: got {mode!r}; give a name ({', '.join(MODES)}) or an instance of one")
    measurements = Measurements() if measurements is None else measurements
    hyper = {name: value.detach() for name, value in hyper.items()}
    with surroundings(problem.precision):
        dynamics = Dynamics.of(problem, hyper)
        first = None
        with suppress(Exception):  # what is wrong with the loss is said by the checks that follow
            first, kept = first_loss(dynamics, hyper)
        check_constructs(dynamics, hyper)
        check_connected(dynamics, hyper)
        if first is None:
            first, kept = first_loss(dynamics, hyper)
        check_kept(measurements.losses, dynamics, hyper, kept)
        account = Account(problem.steps, dynamics.like, on_step, keeper, resume_from, ranks, wanted)
        names = set(dynamics.layout.shapes)
        del dynamics  # its s_0, before the mode makes its own
        began_s = time.perf_counter()
        result = mode.differentiate(problem, hyper, account, measurements)
        run_s = time.perf_counter() - began_s
        check_still(problem, hyper, first, account.inner_loss[0])
        _check_result(mode, result, hyper, names, wanted is not None)
        if result.grad:
            check_order(measurements.losses, problem, hyper, run_s)
            result = result._replace(stats={**result.stats, **account.growth.stats(problem.precision)})
    bias = mode.bias(problem.steps)
    return result if bias is None else result._replace(stats={**result.stats, "bias": bias})


def _check_result(mode: Mode, result: object, hyper: Hyper, names: set[str], may_lack: bool) -> None:
    """Refuses what a mode of one's own returns in another form, or without a derivative or a parameter.

    Args:
        mode: what returned it.
        result: what was returned.
        hyper: lambda.
        names: of the parameters of the run.
        may_lack: whether E may have been found not worth its derivatives, so that there are none.

    Raises:
        TypeError: with what is missing.
    """
    if not isinstance(result, Hypergradient):
        raise TypeError(f"mode {mode.name}: it returned {result!r}; return account.close(value, grad, params)")
    shapes = {name: list(value.shape) for name, value in hyper.items()}
    got = {name: list(value.shape) for name, value in result.grad.items()}
    if got != shapes and not (may_lack and not got):
        raise TypeError(f"mode {mode.name}: it returned derivatives of shapes {got}; return those of hyper, {shapes}")
    if set(result.params) != names:
        missing = ", ".join(sorted(names ^ set(result.params)))
        raise TypeError(f"mode {mode.name}: the parameters that it returned are not those of the run: {missing}")
