"""One problem through several modes, one after the other.

Each mode starts with its memory tidied up and two steps that are thrown away, so that its seconds and its peak of
memory are its own, whatever ran before it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from hyperopt_cli.comparison.common_factors import Runs, at_common_factors
from hyperopt_cli.comparison.compared import Compared, Comparison, Cost, Status
from hyperopt_cli.comparison.difference import Difference, Kind, coarsest, tolerance_for
from hyperopt_cli.errors import (
    DetachedHyperparameterError,
    FixedPointRangeError,
    HyperoptError,
    NonDeterministicError,
    NonFiniteError,
    UsageError,
)
from hyperopt_cli.memory import is_lacking, peak_bytes, reset_peak, tidy_up
from hyperopt_cli.modes import Hypergradient, Measurements, Mode, hypergradient
from hyperopt_cli.problem import Hyper, Problem

# Called after each inner step: the mode as it was named, the phase, steps done, steps in the phase.
OnModeStep = Callable[[str, str, int, int], None]

WARM_UP_STEPS = 2


class Outcome(NamedTuple):
    """What one mode gave.

    Attributes:
        compared: what is shown of the mode, as yet without a difference.
        result: the hypergradient, with w_T on the host; None where the mode has none.
        fixed_point: whether the mode computes in fixed point.
        measurements: what was measured on the way.
    """

    compared: Compared
    result: Hypergradient | None
    fixed_point: bool
    measurements: Measurements


# Takes one mode: the runs, lambda, the name, the mode, who watches.
Measure = Callable[[Runs, Hyper, str, Mode, OnModeStep | None], Outcome]


def compare(
    problem: Problem,
    hyper: Hyper,
    modes: Mapping[str, Mode],
    *,
    tolerance: float | None = None,
    on_step: OnModeStep | None = None,
    measure: Measure | None = None,
) -> Comparison:
    """Takes the hypergradient of `problem` in each mode, one after the other, and compares them.

    Before each mode two steps of it are thrown away, so that none pays for what torch does once. Where the problem's
    precision is lower than its parameters', each mode gives one more hypergradient in that of the parameters, and the
    difference from it is told.

    Args:
        problem: the training run.
        hyper: lambda.
        modes: by the name that the comparison gives them.
        tolerance: which relative difference passes; None for that of the parameters' dtype in `TOLERANCES`.
        on_step: watches the inner loops.
        measure: measures one mode, like `measured` (None); a wrapper of it can write down each mode as it ends.

    Raises:
        DetachedHyperparameterError, NonDeterministicError: no mode could differentiate this problem.
        ValueError: `tolerance` is missing for parameters of another dtype, or negative.
    """
    kind = problem.precision or coarsest(problem.initial(hyper))
    tolerance_for(kind, tolerance, False)  # raises before anything runs
    runs = at_common_factors(problem, hyper, modes.values())
    outcomes = [(measure or measured)(runs, hyper, name, mode, on_step) for name, mode in modes.items()]
    reference = next((each for each in outcomes if each.compared.status == "exact"), None)
    return Comparison(
        steps=problem.steps,
        precision=str(kind).removeprefix("torch."),
        reference=None if reference is None else reference.compared.mode,
        factors=runs.report,
        modes=tuple(_against(each, reference, kind, tolerance) for each in outcomes),
    )


def measured(runs: Runs, hyper: Hyper, name: str, mode: Mode, on_step: OnModeStep | None = None) -> Outcome:
    """Takes the hypergradient in one mode, and returns it or the reason why there is none.

    Args:
        runs: the training run that each mode is given.
        hyper: lambda.
        name: what the comparison calls the mode.
        mode: how to differentiate.
        on_step: watches the inner loop.

    Raises:
        DetachedHyperparameterError, NonDeterministicError: no mode could differentiate this problem.
    """
    problem = runs.of(mode)
    watch = None if on_step is None else partial(on_step, name)
    known = Measurements()
    try:
        short = replace(problem.on_outer_chunk(0), steps=min(WARM_UP_STEPS, problem.steps))
        with suppress(HyperoptError):  # the run itself will raise it
            hypergradient(short, hyper, mode, measurements=known)
        tidy_up()
        device = next(iter(problem.initial(hyper).values())).device
        reset_peak(device)
        held = peak_bytes(device)  # what the process holds before, counted as the peak is
        result = hypergradient(problem, hyper, mode, on_step=watch, measurements=known)
    except (DetachedHyperparameterError, NonDeterministicError):
        raise  # true of the problem, whatever the mode
    except (HyperoptError, RuntimeError, MemoryError) as error:
        return Outcome(_without_result(name, error), None, False, known)
    factors = {} if runs.report is None else {"factors": runs.report.first_and_last()}
    params = {key: w.detach().cpu() for key, w in result.params.items()}
    result = result._replace(params=params, stats={**factors, **result.stats})
    compared = _with_result(name, problem.steps, result, held)
    if problem.precision is not None:
        at_full = None  # once more with every product in the parameters' precision, unless that fails
        tidy_up()
        with suppress(HyperoptError, MemoryError, torch.OutOfMemoryError):
            full = replace(problem, precision=None)
            at_full = hypergradient(full, hyper, mode, on_step=watch, measurements=known)
        if at_full is not None:
            compared = replace(compared, against_float32=Difference.of(result, at_full))
    return Outcome(compared, result, mode.in_integers, known)


def _without_result(name: str, error: Exception) -> Compared:
    """Returns what is shown of a mode that an error stopped; an error that is a defect is raised on."""
    if isinstance(error, HyperoptError):
        status: Status = "refused" if isinstance(error, UsageError) else "failed"
        if isinstance(error, NonFiniteError) and not isinstance(error, FixedPointRangeError):
            status = "diverged"
        return Compared(name, status, str(error), error.exit_code)
    if is_lacking(error):
        return Compared(name, "out of memory", str(error).partition("\n")[0] or "no memory left", UsageError.exit_code)
    raise error


def _with_result(name: str, steps: int, result: Hypergradient, held: int) -> Compared:
    """Returns what is shown of a mode that ran; `held` are the bytes that the process held before."""
    stats, bias = result.stats, result.stats.get("bias")
    bits = stats.get("bits_per_parameter_step")
    counts = {key: stats[key] for key in ("wall_s", "peak_bytes", "num_steps", "num_gradients", "num_hvps")}
    cost = Cost(
        **counts,
        taken_bytes=max(0, counts["peak_bytes"] - held),
        bits_per_parameter=None if bits is None else float(bits) * steps,
    )
    return Compared(
        mode=name,
        status="exact" if bias is None else "biased",
        reason=stats.get("checks") if bias is None else bias,
        validation_loss=float(result.value),
        hypergradient={key: value.tolist() for key, value in result.grad.items()},
        cost=cost,
        digits=stats.get("digits"),
    )


def _against(outcome: Outcome, reference: Outcome | None, kind: Kind, tolerance: float | None) -> Compared:
    """Returns the mode with its difference from the reference."""
    if reference is None or reference.result is None or outcome.result is None:
        return outcome.compared
    difference = Difference.of(outcome.result, reference.result)
    if outcome.compared.status != "exact":
        return replace(outcome.compared, difference=difference)
    allowed = tolerance_for(kind, tolerance, outcome.fixed_point or reference.fixed_point)
    return replace(outcome.compared, difference=difference, tolerance=allowed)
