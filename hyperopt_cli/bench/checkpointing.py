"""`hyperopt bench checkpointing`: is recomputation as cheap as its counts say?

With n slots reverse mode takes E(T, n) + 1 steps of training and T steps of the sweep (`modes/adjoint/`). The
time that these counts predict is

    num_steps t_step + num_hvps t_adjoint

t_step from plain training that keeps no state, t_adjoint from the backward sweep of a run that keeps all of them, both
in the round in which the run with n slots is measured. `measured_over_predicted` is what the slots themselves cost.
`states_bytes` is what the kept states and the one in hand take, `share_of_states` of what all T of them would.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch

from hyperopt_cli.bench.machine import machine
from hyperopt_cli.bench.measuring import Ratio, Samples, interleaved
from hyperopt_cli.bench.problems import Workload, classification
from hyperopt_cli.bench.report import Figure, Report, Settings, compared
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.models import mlp
from hyperopt_cli.modes import Hypergradient, Measurements, Reverse, hypergradient
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.straight_line import Line
from hyperopt_cli.optimizers import SGD

TRAINING, ALL = "plain training", "reverse, slots: all"
HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}


@dataclass(frozen=True)
class Sizes:
    """The sizes of the network and of its training run, and the numbers of slots that are measured."""

    steps: int = 1000
    inputs: int = 784
    hidden: tuple[int, ...] = (50, 50)
    batch: int = 128
    slots: tuple[int, ...] = (200, 50, 10)


class Outcome(NamedTuple):
    """A hypergradient, and the seconds that its way back took, the outer objective included."""

    result: Hypergradient
    back_s: float


def measure(settings: Settings, sizes: Sizes | None = None) -> Report:
    """Measures the time of reverse mode with few slots, beside what its counts predict, and the memory of states."""
    sizes = sizes or Sizes()
    steps = settings.steps or sizes.steps
    make = partial(mlp, hidden=sizes.hidden)
    workload = classification(make, (sizes.inputs,), sizes.batch, steps, SGD(), HYPER, settings.device)
    calls: dict[str, Callable[[], object]] = {
        TRAINING: partial(_train, workload),
        ALL: partial(_differentiate, workload, Reverse(), Measurements()),
        **{_name(n): partial(_differentiate, workload, Reverse(slots=n), Measurements()) for n in sizes.slots},
    }
    samples = interleaved(calls, settings.repeat, settings.device, settings.on_progress)
    able = {name: shown for name, shown in samples.items() if isinstance(shown, Samples)}
    size = state_bytes(Dynamics.of(*workload).start)
    # all T states, or those in the slots and the current one besides
    held = {ALL: steps * size, **{_name(n): min(n + 1, steps) * size for n in sizes.slots}}

    def figures(name: str, shown: Samples) -> Mapping[str, Figure]:
        if name == TRAINING:
            return {}
        training_s, all_kept = able[TRAINING].timing.rounds_s, able[ALL].results
        predictions = [predicted_s(*each) for each in zip(shown.results, training_s, all_kept, strict=True)]
        grads = [(out.result.grad, kept.result.grad) for out, kept in zip(shown.results, all_kept, strict=True)]
        stats = shown.results[0].result.stats
        return {
            "num_steps": stats["num_steps"],
            "num_hvps": stats["num_hvps"],
            "predicted_s": statistics.median(predictions),
            "measured_over_predicted": Ratio.of(shown.timing.rounds_s, predictions),
            "states_bytes": held[name],
            "share_of_states": held[name] / held[ALL],
            "taken_bytes": shown.taken_bytes,
            "same_bits": all(torch.equal(x, kept[key]) for grad, kept in grads for key, x in grad.items()),
        }

    widths = "-".join(map(str, (sizes.inputs, *sizes.hidden, 10)))
    case = compared(f"MLP {widths}, batch {sizes.batch}, T = {steps}, heavy ball", samples, ALL, figures)
    written = {**asdict(sizes), "steps": steps, "repeat": settings.repeat}
    return Report("checkpointing", machine(settings.device), written, (case,))


def predicted_s(outcome: Outcome, training_s: float, all_kept: Outcome) -> float:
    """Returns the seconds that the counts of `outcome` predict.

    Args:
        outcome: the run with few slots, whose steps and products are counted.
        training_s: seconds of plain training over the same horizon.
        all_kept: the run that keeps all states, from which the seconds of one adjoint step are taken.
    """
    counts, base = outcome.result.stats, all_kept.result.stats
    step_s, adjoint_s = training_s / base["num_steps"], all_kept.back_s / base["num_hvps"]
    return float(counts["num_steps"] * step_s + counts["num_hvps"] * adjoint_s)


def _train(workload: Workload) -> None:
    """Trains without differentiating: every state is dropped at once."""
    with surroundings():
        dynamics = Dynamics.of(*workload)
        steps, _ = Reverse(compile=False).steps(dynamics, workload.hyper, Measurements())
        Line(steps, Account(workload.problem.steps, dynamics.like), workload.problem.steps).forward(lambda: None)


def _differentiate(workload: Workload, mode: Reverse, known: Measurements) -> Outcome:
    """Returns the hypergradient, and the seconds from the end of the last forward step to the end of the way back."""
    times: dict[str, float] = {}

    def on_step(phase: str, done: int, steps: int) -> None:
        times[phase] = time.perf_counter()

    result = hypergradient(*workload, mode, on_step=on_step, measurements=known)
    return Outcome(result, times["backward"] - times["forward"])


def _name(slots: int) -> str:
    return f"reverse, slots: {slots}"
