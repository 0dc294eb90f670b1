"""One problem through several modes, one after the other.

Each mode starts with its memory tidied up and two steps that are thrown away, so that its seconds and its peak of
memory are its own, whatever ran before it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.comparison.difference import Kind, coarsest, relative_difference, tolerance_for
from hyperopt_cli.comparison.factors import at_common_factors
from hyperopt_cli.errors import (
    DetachedHyperparameterError,
    FixedPointRangeError,
    HyperoptError,
    NonDeterministicError,
    NonFiniteError,
    UsageError,
)
from hyperopt_cli.memory import is_lacking, peak_bytes, reset_peak, tidy_up
from hyperopt_cli.modes import Hypergradient, Mode, hypergradient
from hyperopt_cli.modes.base import OnStep
from hyperopt_cli.modes.reversible import Reversible
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.run_directory.compared import Compared, Comparison, Cost, Difference, Status

# Called after each inner step: the mode as it was named, the phase, steps done, steps in the phase.
OnModeStep = Callable[[str, str, int, int], None]

WARM_UP_STEPS = 2


class _Outcome(NamedTuple):
    """What one mode gave, whether it computes in fixed point, and E, its derivative and w_T where it ran to its end."""

    compared: Compared
    fixed_point: bool
    value: Tensor
    grad: Hyper
    params: Params


def compare(
    problem: Problem,
    hyper: Hyper,
    modes: Mapping[str, Mode],
    *,
    tolerance: float | None = None,
    on_step: OnModeStep | None = None,
) -> Comparison:
    """The hypergradient of `problem` in each mode, one after the other, and how they differ.

    Before each mode two steps of it are thrown away, so that none pays for what torch does once. Where the problem's
    precision is lower than its parameters', each mode gives one more hypergradient in that of the parameters, and the
    difference from it is told.

    Args:
        problem: the training run.
        hyper: lambda.
        modes: by the name that the comparison gives them.
        tolerance: which relative difference passes; None for that of the parameters' dtype in `TOLERANCES`.
        on_step: watches the inner loops.

    Raises:
        DetachedHyperparameterError, NonDeterministicError: no mode could differentiate this problem.
        ValueError: `tolerance` is missing for parameters of another dtype, or negative.
    """
    kind = problem.precision or coarsest(problem.initial(hyper))
    tolerance_for(kind, tolerance, False)  # raises before anything runs
    runs = at_common_factors(problem, hyper, modes.values())
    outcomes = [_measured(runs.of(mode), hyper, name, mode, on_step) for name, mode in modes.items()]
    reference = next((each for each in outcomes if each.compared.status == "exact"), None)
    return Comparison(
        steps=problem.steps,
        precision=str(kind).removeprefix("torch."),
        reference=None if reference is None else reference.compared.mode,
        factors=runs.report,
        modes=tuple(_against(each, reference, kind, tolerance) for each in outcomes),
    )


def _measured(problem: Problem, hyper: Hyper, name: str, mode: Mode, on_step: OnModeStep | None) -> _Outcome:
    """One mode, or why it has no result."""
    try:
        _warm_up(problem, hyper, mode)
        tidy_up()
        held = _held_bytes(problem, hyper)
        watch = None if on_step is None else _named(on_step, name)
        result = hypergradient(problem, hyper, mode, on_step=watch)
    except (DetachedHyperparameterError, NonDeterministicError):
        raise  # true of the problem, whatever the mode
    except (HyperoptError, RuntimeError, MemoryError) as error:
        return _Outcome(_without_result(name, error), False, torch.empty(0), {}, {})
    outcome = _with_result(name, problem.steps, result, held, isinstance(mode, Reversible))
    if problem.precision is None:
        return outcome
    at_full = _at_full_precision(problem, hyper, mode, watch)
    told = None if at_full is None else _difference(outcome, at_full)
    return outcome._replace(compared=replace(outcome.compared, against_float32=told))


def _at_full_precision(problem: Problem, hyper: Hyper, mode: Mode, watch: OnStep | None) -> Hypergradient | None:
    """The same with every product in the parameters' precision; None where that has no result."""
    tidy_up()
    with suppress(HyperoptError, MemoryError, torch.OutOfMemoryError):
        return hypergradient(replace(problem, precision=None), hyper, mode, on_step=watch)
    return None


def _warm_up(problem: Problem, hyper: Hyper, mode: Mode) -> None:
    """Two steps and one chunk of the objective; what is wrong with them is told by the run itself."""
    chunks = None if problem.outer_batches is None else [problem.outer_batches[0]]
    short = replace(problem, steps=min(WARM_UP_STEPS, problem.steps), outer_batches=chunks)
    with suppress(HyperoptError):
        hypergradient(short, hyper, mode)


def _named(on_step: OnModeStep, name: str) -> Callable[[str, int, int], None]:
    return lambda phase, done, steps: on_step(name, phase, done, steps)


def _without_result(name: str, error: Exception) -> Compared:
    """What stopped the mode; what is neither of this package nor a lack of memory is a defect, and raised."""
    if isinstance(error, HyperoptError):
        return Compared(name, _status(error), str(error), error.exit_code)
    if is_lacking(error):
        return Compared(name, "out of memory", str(error).partition("\n")[0] or "no memory left", UsageError.exit_code)
    raise error


def _status(error: HyperoptError) -> Status:
    if isinstance(error, NonFiniteError) and not isinstance(error, FixedPointRangeError):
        return "diverged"
    return "refused" if isinstance(error, UsageError) else "failed"


def _held_bytes(problem: Problem, hyper: Hyper) -> int:
    """What the process holds before a mode begins, counted as its peak is."""
    device = next(iter(problem.initial(hyper).values())).device
    reset_peak(device)
    return peak_bytes(device)


def _with_result(name: str, steps: int, result: Hypergradient, held: int, fixed_point: bool) -> _Outcome:
    bias = result.stats.get("bias")
    compared = Compared(
        mode=name,
        status="exact" if bias is None else "biased",
        reason=result.stats.get("checks") if bias is None else bias,
        validation_loss=float(result.value),
        hypergradient={key: value.tolist() for key, value in result.grad.items()},
        cost=_cost(steps, result.stats, held),
    )
    params = {key: w.detach().cpu() for key, w in result.params.items()}
    return _Outcome(compared, fixed_point, result.value, result.grad, params)


def _cost(steps: int, stats: Mapping[str, Any], held: int) -> Cost:
    bits = stats.get("bits_per_parameter_step")
    counts = {key: stats[key] for key in ("wall_s", "peak_bytes", "num_steps", "num_gradients", "num_hvps")}
    return Cost(
        **counts,
        taken_bytes=max(0, counts["peak_bytes"] - held),
        bits_per_parameter=None if bits is None else float(bits) * steps,
    )


def _against(outcome: _Outcome, reference: _Outcome | None, kind: Kind, tolerance: float | None) -> Compared:
    """The mode with its difference from the reference."""
    if reference is None or outcome.compared.cost is None:
        return outcome.compared
    difference = _difference(outcome, reference)
    if outcome.compared.status != "exact":
        return replace(outcome.compared, difference=difference)
    allowed = tolerance_for(kind, tolerance, outcome.fixed_point or reference.fixed_point)
    return replace(outcome.compared, difference=difference, tolerance=allowed)


def _difference(outcome: _Outcome, reference: _Outcome | Hypergradient) -> Difference:
    return Difference(
        validation_loss=relative_difference(outcome.value, reference.value),
        params=relative_difference(_flat(outcome.params), _flat(reference.params)),
        hypergradient={key: relative_difference(outcome.grad[key], reference.grad[key]) for key in reference.grad},
    )


def _flat(params: Params) -> Tensor:
    return torch.cat([w.flatten().double() for w in params.values()])
