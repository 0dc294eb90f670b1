"""Where the time of a hypergradient goes: its pieces timed one by one, over a run and back.

    training          gradients on the way there; in reverse mode with the update of the float state
    arithmetic there  the step in exact integers
    arithmetic back   that step undone
    adjoint           on the way back: the gradient again, and the adjoint step

The device is waited for around every piece, so on a GPU, where a run overlaps them, they add up to more than a run.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_map

from hyperopt_cli.bench.problems import Workload
from hyperopt_cli.dynamics.derivatives import gradient_and_pullback
from hyperopt_cli.dynamics.dynamics import Dynamics, State, train_step
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.adjoint.sweep import adjoint_step, backward_step, step_gradient
from hyperopt_cli.modes.planning.probe import synchronize
from hyperopt_cli.modes.reversal.factors import Factors, at_factors
from hyperopt_cli.modes.reversal.fixed_point import FixedPoint
from hyperopt_cli.modes.reversal.kernels import EAGER, Kernels
from hyperopt_cli.modes.reversal.radix import Radixes
from hyperopt_cli.modes.reversible import deterministic
from hyperopt_cli.optimizers.exact import LIMIT

TRAINING, THERE, BACK, ADJOINT = "training", "arithmetic there", "arithmetic back", "adjoint"


class Stopwatch:
    """Adds up seconds by piece and step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))

    @contextmanager
    def around(self, piece: str, t: int) -> Iterator[None]:
        """A context whose seconds are added to that piece of step t."""
        synchronize(self._device)
        began = time.perf_counter()
        yield
        synchronize(self._device)
        self._seconds[piece][t] += time.perf_counter() - began

    def whole_s(self, steps: int) -> dict[str, float]:
        """Returns the seconds of `steps` steps by piece, where each step counts as the median of the measured ones."""
        return {piece: steps * statistics.median(by_step.values()) for piece, by_step in self._seconds.items()}


def reverse_pieces(workload: Workload, device: torch.device) -> dict[str, float]:
    """Returns the seconds of reverse mode with all states kept, by piece."""
    problem, hyper = workload
    stopwatch = Stopwatch(device)
    with surroundings():
        dynamics = Dynamics.of(problem, hyper)
        ones = tree_map(torch.ones_like, dynamics.start)
        states = [dynamics.start]
        for t in range(problem.steps):
            with stopwatch.around(TRAINING, t):
                state, _ = train_step(dynamics, problem.batch(t), t, states[-1], dynamics.hyper_at(hyper, t))
            states.append(state)
        for t in reversed(range(problem.steps)):
            state = states[t]
            with stopwatch.around(ADJOINT, t):
                backward_step(dynamics, problem.batch(t), t, state, dynamics.hyper_at(hyper, t), ones)
    return stopwatch.whole_s(problem.steps)


def reversible_pieces(workload: Workload, device: torch.device, kernels: Kernels, radixes: Radixes) -> dict[str, float]:
    """Returns the seconds of reversible mode, by piece.

    Args:
        workload: the training run.
        device: where it computes.
        kernels: the kernels of the integer arithmetic, eager or compiled.
        radixes: the radixes of the fixed-point numbers, as a hypergradient of this run has found them.
    """
    stopwatch = Stopwatch(device)
    with surroundings(), deterministic():
        dynamics, held = _in_fixed_point(workload, kernels, radixes)
        _go(dynamics, workload, held, stopwatch)
        ones = tree_map(torch.ones_like, dynamics.start)
        for t in reversed(range(workload.problem.steps)):
            with stopwatch.around(BACK, t):
                params = held.undo_weights(dynamics.hyper_at(workload.hyper, t), t)
                held.fingerprint()
            with stopwatch.around(ADJOINT, t):
                step_hyper = dynamics.hyper_at(workload.hyper, t)
                at_t = step_gradient(dynamics, dynamics.loss_at(t), t, State(params, {}), step_hyper)
            with stopwatch.around(BACK, t):
                state = held.undo_rest(at_t.grads, at_t.step_hyper, t)
            with stopwatch.around(ADJOINT, t):
                adjoint_step(dynamics, at_t._replace(state=state), ones)
    return stopwatch.whole_s(workload.problem.steps)


def held_at_end(workload: Workload, radixes: Radixes) -> int:
    """Returns the bytes that the weights, the optimizer's slots and the store take at s_T."""
    with surroundings():
        dynamics, held = _in_fixed_point(workload, EAGER, radixes)
        _go(dynamics, workload, held, Stopwatch(dynamics.like.device))
    own = [radix for named in held.radixes.values() for radix in named.values() if isinstance(radix, torch.Tensor)]
    return state_bytes((held.numbers, own, [(store.remainders, store.words) for store in held.stores.values()]))


def _in_fixed_point(workload: Workload, kernels: Kernels, radixes: Radixes) -> tuple[Dynamics, FixedPoint]:
    problem, hyper = workload
    factors = Factors(Dynamics.of(problem, hyper), hyper)
    dynamics = Dynamics.of(at_factors(problem, hyper), hyper)
    return dynamics, FixedPoint(dynamics, factors, radixes, kernels)


def _go(dynamics: Dynamics, workload: Workload, held: FixedPoint, stopwatch: Stopwatch) -> None:
    peaks = []
    for t in range(workload.problem.steps):
        step_hyper = dynamics.hyper_at(workload.hyper, t)
        with stopwatch.around(TRAINING, t):
            point = dynamics.layout.unpack(held.weights())
            _, g, _ = gradient_and_pullback(dynamics.loss_at(t), point, step_hyper)
            grads = dynamics.layout.pack(g)
        with stopwatch.around(THERE, t):
            held.fingerprint()
            peaks += [peak.size for peak in held.advance(grads, step_hyper, t)]
    assert bool((torch.stack(peaks) < LIMIT).all()), "a number left its fixed-point range"
