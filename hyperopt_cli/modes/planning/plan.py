"""Which mode to take: the quickest exact one that fits into the memory, by what each mode predicts of itself."""

import gc
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hyperopt_cli import memory
from hyperopt_cli.byte_sizes import bytes_text
from hyperopt_cli.checks.connectivity import check_connected
from hyperopt_cli.checks.constructs import check_constructs
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.planning.prediction import AT_LEAST_S, NUM_PROBES, SHARE_OF_RUN, Basis, Prediction, repeats
from hyperopt_cli.modes.planning.probe import held_bytes, objective_cost, probed, spread
from hyperopt_cli.problem import Hyper, Problem, check_hyper
from hyperopt_cli.registry import MODES, load

TIE = 1.05


class Plan(NamedTuple):
    """What every mode would take, and which to take.

    Attributes:
        predictions: of every mode.
        choice: the quickest exact mode that fits; of those within 5% of its time, the one with the smallest memory;
            where that is within 5% too, the quickest.
        why: one sentence.
        available_bytes: the memory that the process may take in all.
    """

    predictions: tuple[Prediction, ...]
    choice: Prediction
    why: str
    available_bytes: int


def plan(problem: Problem, hyper: Hyper, *, available_bytes: int | None = None) -> Plan:
    """Measures a few steps of each mode, predicts the whole run, and chooses.

    Nothing of a run that follows is changed: generators of random numbers are left as they were.

    Args:
        problem: the training run.
        hyper: lambda, floating-point tensors of any shape.
        available_bytes: the memory that the process may take in all, of the device where the problem lies; None: what
            it holds and what is free there.

    Raises:
        UsageError: no mode fits; it says what each needs.
        DetachedHyperparameterError: nothing depends on some key of `hyper`.
        NonFiniteError: the run diverges at its first steps.

    Example:
        >>> plan(problem, {"lr": torch.tensor(0.1)}).choice.name  # doctest: +SKIP
        'reverse'
    """
    check_hyper(hyper)
    hyper = {name: value.detach() for name, value in hyper.items()}
    with surroundings(problem.precision):
        dynamics = Dynamics.of(problem, hyper)
        check_constructs(dynamics, hyper)
        check_connected(dynamics, hyper)
        return planned(dynamics, hyper, available_bytes)


def planned(dynamics: Dynamics, hyper: Hyper, available_bytes: int | None = None) -> Plan:
    """Makes a plan as `plan` does, inside the surroundings of a mode and with `hyper` checked."""
    device = dynamics.like.device
    gc.collect()  # once: on a process that has loaded torch it takes longer than a step
    held = held_bytes(device)
    if available_bytes is None:
        available_bytes = held + memory.available_bytes(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        predicted = _predictions(dynamics, hyper, available_bytes)
    return plan_from(predicted, available_bytes)


def _predictions(dynamics: Dynamics, hyper: Hyper, limit_bytes: int) -> list[Prediction]:
    """Returns what every mode predicts of itself.

    Forward mode, which holds the most while it is measured, is asked last, so that none inherits its peak.
    """
    modes = {name: load(entry.path)() for name, entry in MODES.items()}
    problem, objective, reverse = dynamics.problem, objective_cost(dynamics, hyper), modes["reverse"]
    rough_s = probed(reverse, problem, hyper, spread(problem.steps, 2)).whole_step_s
    share_s = max(AT_LEAST_S, SHARE_OF_RUN * problem.steps * rough_s) / NUM_PROBES
    num = repeats(share_s, rough_s)
    measured = probed(reverse, problem, hyper, spread(problem.steps, num))
    basis = Basis(dynamics, hyper, limit_bytes, share_s, objective, measured, num)
    found = {name: list(mode.predictions(basis)) for name, mode in reversed(modes.items())}
    return [prediction for name in modes for prediction in found[name]]


def plan_from(predicted: Sequence[Prediction], available_bytes: int) -> Plan:
    """Returns the plan that follows from predictions.

    Raises:
        UsageError: none of them fits.
    """
    fitting = sorted((p for p in predicted if p.fits and not p.is_biased), key=_seconds)
    if not fitting:
        raise UsageError(_nothing_fits(predicted, available_bytes))
    near = [p for p in fitting if _seconds(p) <= TIE * _seconds(fitting[0])]
    least = min(map(_bytes, near))
    choice = next(p for p in near if _bytes(p) <= TIE * least)
    return Plan(tuple(predicted), choice, _why(choice, fitting, predicted), available_bytes)


def _seconds(prediction: Prediction) -> float:
    assert prediction.wall_s is not None
    return prediction.wall_s


def _bytes(prediction: Prediction) -> int:
    assert prediction.peak_bytes is not None
    return prediction.peak_bytes


def _why(choice: Prediction, fitting: Sequence[Prediction], predicted: Sequence[Prediction]) -> str:
    """One sentence."""
    takes = f"{choice.name} takes {seconds_text(_seconds(choice))} and {bytes_text(_bytes(choice))} a hypergradient"
    if len(fitting) == 1:
        reason = "and nothing else fits"
    elif choice is not fitting[0]:
        first = fitting[0]
        reason = f"within 5% of the time of {first.name}, which needs {bytes_text(_bytes(first))}"
    else:
        second = fitting[1]
        reason = f"the quickest of the {len(fitting)} that fit ({second.name}: {seconds_text(_seconds(second))})"
    larger = [p for p in predicted if not p.fits and not p.is_biased and p.wall_s is not None]
    quicker = [p for p in larger if _seconds(p) < _seconds(choice)]
    if not quicker:
        return f"{takes}, {reason}"
    best = min(quicker, key=_seconds)
    return f"{takes}, {reason}; {best.name} ({seconds_text(_seconds(best))}) would need {bytes_text(_bytes(best))}"


def _nothing_fits(predicted: Sequence[Prediction], available_bytes: int) -> str:
    needs = [
        f"{p.name} needs {bytes_text(p.peak_bytes)}" if p.peak_bytes is not None else f"{p.name} can't run ({p.note})"
        for p in predicted
    ]
    return (
        f"mode: none fits into {bytes_text(available_bytes)}: {', '.join(needs)}; "
        "take a device with more memory, smaller batches or a smaller model"
    )


def seconds_text(seconds: float) -> str:
    """Writes seconds with three digits and a unit: `250 ms`, `1.5 min`."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 100 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"
