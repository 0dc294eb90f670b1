"""Reversible mode: reverse mode whose past states are not stored but run backwards, in exact integer arithmetic.

Synonyms: reversible learning, exact reversal of the training dynamics.

    forward     s_{t+1} = U(s_t, g_t, lambda_t, t) on integers; what a multiplication loses goes into a store
    backward    s_t from s_{t+1}, bit for bit, then reverse mode's own sweep:
                dE/dlambda += alpha_{t+1} B_t,    alpha_t = alpha_{t+1} A_t

Maclaurin, Duvenaud and Adams 2015, https://arxiv.org/abs/1502.03492, algorithms 2 and 3, for every rule whose increment
of w has no gradient in it: heavy ball, Adam, AdamW, RMSprop with momentum. `optimizers/exact.py` has the arithmetic.

Cost: as reverse, T (2 gradients + 1 HVP), plus the integer arithmetic and a trial step. Memory: 1 state and a store, in
all 8 bytes for w, for each slot and for the store, a byte more where elements have binary points of their own, and
log2(d/n) bits a parameter and step for every factor n/d (0.15 at a momentum of 0.9, 64 at 0, where all is lost).

The hypergradient is taken at the rational factors in use (`reversal/factors.py`). The gradient of a step must have the
same bits forward and backward: deterministic kernels are set for the mode, and the start is compared on every run.

Prefer reverse with slots for Nesterov, NAdam or plain SGD, whose steps can't be undone; reverse where all states fit.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hyperopt_cli.checks.judge import Judge
from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss
from hyperopt_cli.dynamics.dynamics import Dynamics, State
from hyperopt_cli.errors import FixedPointRangeError, HyperoptError, NonFiniteError, ReversalError, UsageError
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.sweep import Backward, PastStates, adjoint_step, backward_sweep, resumed, step_gradient
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.compilation import check_compile
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.planning import reversible_cost
from hyperopt_cli.modes.planning.prediction import Basis, Prediction
from hyperopt_cli.modes.result import Hypergradient, stats_of_checks
from hyperopt_cli.modes.reversal.factors import Factors
from hyperopt_cli.modes.reversal.fixed_point import FixedPoint, Peak
from hyperopt_cli.modes.reversal.kernels import EAGER, Kernels, choose
from hyperopt_cli.modes.reversal.radix import Radixes, chosen
from hyperopt_cli.optimizers.base import WEIGHTS, Coupling, Params, StepHyper
from hyperopt_cli.optimizers.exact import LIMIT
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.program.failures import is_of_compiling, reason_without

MOST_ATTEMPTS = 8  # to find a radix
REVERSED = "the state run backwards"  # not finite: not what it was


@dataclass(frozen=True)
class Reversible(Mode):
    """Reversible mode.

    Args:
        radix: bits after the binary point by the name of what is held, "w" or a slot, which takes |x| < 2^(62 - radix);
            None: as `reversal/radix.py` finds them, for each element.
        compile: compile the integer arithmetic; "auto": where parameters times steps repay it.

    Raises:
        ValueError: a radix out of 1 ... 100, or another value of `compile`.
    """

    has_backward: ClassVar[bool] = True
    in_integers: ClassVar[bool] = True

    radix: Mapping[str, int] | None = None
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        if self.radix is not None and not isinstance(self.radix, Mapping):
            raise ValueError(f"radix: got {self.radix!r}; give a mapping from a name to bits, such as {{'w': 50}}")
        for name, bits in (self.radix or {}).items():
            if not isinstance(bits, int) or not 1 <= bits <= 100:
                raise ValueError(f"radix: got {bits!r} for {name}; allowed are 1 to 100 bits after the binary point")
        check_compile(self.compile)

    def predictions(self, basis: Basis) -> Iterable[Prediction]:
        """Predicts one state and the store.

        Args:
            basis: the problem, and what was measured of it.
        """
        yield reversible_cost.prediction(self, basis, refusal(basis.dynamics.problem, basis.hyper))

    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        """Runs the training in integers, and backwards with the adjoint (Maclaurin et al. 2015, algorithm 2).

        Args:
            problem: the training run.
            hyper: lambda, detached.
            account: records the run.
            measurements: of earlier hypergradients; new ones are added.
        """
        if (reason := refusal(problem, hyper)) is not None:
            raise UsageError(f"reversible: {reason}")
        judge = measurements.judge("reversible")
        written = judge.watching(Dynamics.of(problem, hyper), hyper, account.examines)
        factors = Factors(written.with_schedule_as_operators(), hyper)
        dynamics = replace(
            Dynamics.of(factors.problem(), hyper), watch=written.watch, as_operators=written.as_operators - {"schedule"}
        )
        size = problem.steps * sum(w.numel() for w in dynamics.start.params.values())
        kernels = EAGER if measurements.not_compiled else choose(self.compile, size)
        out = None
        try:
            out = self._reversed(dynamics, hyper, factors, kernels, account, judge)
        except HyperoptError as error:
            if self.compile != "auto" or not is_of_compiling(error):
                raise
            measurements.not_compiled.append(reason_without(error))
        if out is None:  # not above: as long as the error is there, it holds what the run had made
            kernels = EAGER
            account.restart()
            out = self._reversed(dynamics, hyper, factors, kernels, account, judge)
        why = {"compiled_why": measurements.not_compiled[0]} if measurements.not_compiled else {}
        return out._replace(stats={**out.stats, "compiled": kernels is not EAGER, **why})

    def _reversed(
        self, dynamics: Dynamics, hyper: Hyper, factors: Factors, kernels: Kernels, account: Account, judge: Judge
    ) -> Hypergradient:
        """Forward and backward, at the factors in use; anew where a number turns out to need another radix."""
        given = dict(self.radix or {})
        names = [coupling.name for coupling in factors.couplings]
        if unknown := [name for name in given if name not in names]:
            raise UsageError(f"radix: given for {', '.join(unknown)}; what is held is {', '.join(names)}")
        trial = Account(dynamics.problem.steps, dynamics.like)  # uncounted, as in connectivity
        saved, steps, attempt = account.resume(), 1, 0
        if saved:
            attempt = saved["past"]["attempt"]
        with deterministic():
            while True:
                if saved:
                    radixes = _on(dynamics.like.device, saved["past"]["held"]["radixes"])
                else:
                    radixes = chosen(dynamics, hyper, factors, given, steps, attempt, trial)
                held = FixedPoint(dynamics, factors, radixes, kernels)
                past = _Reversed(dynamics, hyper, held, account, judge, attempt)
                sweep = resumed(past, saved, dynamics, hyper)
                try:
                    out = backward_sweep(dynamics, hyper, past, account, sweep=sweep, judge=judge.outer)
                    break
                except _OutgrownError as error:
                    outgrown = error.with_traceback(None)  # its frames hold the state
                except NonFiniteError as error:
                    if error.what != REVERSED:
                        raise
                    raise ReversalError(error.step, past.num_wrong_at_start()) from None
                attempt += 1
                if outgrown.name in given or attempt == MOST_ATTEMPTS:
                    raise _out_of_range(outgrown, given, factors)
                trial, steps = account, outgrown.step + 1
                account.counts.add_steps(steps - held.t)  # it is seen sooner where a checkpoint is due
                del held, past, sweep
        stats = {
            "bits_per_parameter_step": past.bits / dynamics.problem.steps,
            "factors": _collected([factors.report(t) for t in range(dynamics.problem.steps)]),
            "radix": radixes,
            **stats_of_checks(judge.notes),
        }
        return out._replace(stats={**out.stats, **stats})


class _OutgrownError(Exception):
    """A number has left its range; `size` in units of 2^-radix."""

    def __init__(self, step: int, name: str, size: float) -> None:
        self.step, self.name, self.size = step, name, size


def refusal(problem: Problem, hyper: Hyper) -> str | None:
    """Says why this run cannot be reversed; None if it can."""
    dynamics = Dynamics.of(problem, hyper)
    optimizer, name = problem.optimizer, type(problem.optimizer).__name__
    instead = "use Reverse(slots=...), in a recipe mode: {name: reverse, slots: auto}"
    couplings = optimizer.couplings(tuple(dynamics.start.slots))
    if WEIGHTS not in {coupling.name for coupling in couplings}:
        return f"{name} states its rule by `update`, which cannot be undone; give it couplings, or {instead}"
    if not dynamics.point_is_state:
        return f"{name} takes the gradient at another point than w, which can't be found first; {instead}"
    first = [coupling.name for coupling in couplings].index(WEIGHTS)
    if any(_contains_gradient(dynamics, hyper, coupling) for coupling in couplings[first:]):
        return (
            f"{name} as it is set here: the increment of w contains the gradient itself, and g_t = g(w_t) is known "
            "only once w_t is, so that the step cannot be undone; take a momentum without Nesterov's variant, or "
            f"{instead}"
        )
    return None


def _contains_gradient(dynamics: Dynamics, hyper: Hyper, coupling: Coupling) -> bool:
    optimizer, start = dynamics.problem.optimizer, dynamics.start
    name, w = next(iter(start.params.items()))
    arguments = optimizer.arguments(dynamics.arguments(dynamics.hyper_at(hyper, 0)), name, w)
    parts = {WEIGHTS: w, **{slot: held[name] for slot, held in start.slots.items()}}
    with torch.enable_grad():
        d = torch.ones_like(w).requires_grad_()
        h = optimizer.increment_of(coupling, parts, d, optimizer.coefficients(arguments, 0))
    return h.requires_grad


def _on(device: torch.device, radixes: Radixes) -> Radixes:
    moved: Radixes = tree_map_only(Tensor, lambda x: x.to(device), radixes)
    return moved


def _out_of_range(outgrown: _OutgrownError, given: Mapping[str, int], factors: Factors) -> FixedPointRangeError:
    least = min(c.least_radix for c in factors.couplings if c.name == outgrown.name)
    radix = given.get(outgrown.name, least)
    return FixedPointRangeError(outgrown.step, outgrown.name, outgrown.size * 2.0**-radix, radix, given)


class _Reversed(PastStates):
    """The run in integers, and the same steps undone.

    Args:
        dynamics: at the factors in use.
        hyper: lambda.
        held: s_0.
        account: records every step.
        judge: says how the gradient is differentiated, step by step.
        attempt: how often the run has begun anew.

    Attributes:
        bits: that the store took at s_T, a parameter.
    """

    slots = 1
    needs_same_bits = True

    def __init__(
        self, dynamics: Dynamics, hyper: Hyper, held: FixedPoint, account: Account, judge: Judge, attempt: int
    ) -> None:
        self._dynamics, self._hyper, self._held = dynamics, hyper, held
        self._account, self._judge, self._attempt = account, judge, attempt
        self.bits = 0.0
        self._marks: list[Tensor] = []  # the fingerprint of every state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` stood; the radixes were given when `held` was made."""
        self._held.load_state_dict(state["held"])
        self.bits = state["bits"]
        self._marks = list(state["marks"].to(self._dynamics.like.device).unbind())

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in integers with its store, and the fingerprints that tell whether it is right."""
        marks = torch.stack(self._marks) if self._marks else torch.zeros(0, dtype=torch.int64)
        return {"held": self._held.state_dict(), "attempt": self._attempt, "bits": self.bits, "marks": marks}

    def forward(self, save: Callable[[], None]) -> State:
        """Takes s_t to s_T in place, and keeps a fingerprint of every state.

        Raises:
            _OutgrownError: a number turns out to need another radix.
        """
        held, account, steps = self._held, self._account, self._dynamics.problem.steps
        peaks: list[tuple[int, Peak]] = []
        for t in range(held.t, steps):
            step_hyper = self._dynamics.hyper_at(self._hyper, t)
            self._marks.append(held.fingerprint())
            value, g = _gradient(self._dynamics, held, step_hyper, t, self._judge)
            account.counts.add_steps(1)
            account.inner_loss[t] = value
            account.finite.watch(t, "the training loss", value)
            peaks += [(t, peak) for peak in held.advance(g, step_hyper, t)]
            due = account.ask_due() and t + 1 < steps  # `save` asks once more, and hears the same
            if (t + 1) % account.finite.every == 0 or t + 1 == steps or due:
                account.finite.check()
                _check_range(peaks)
                peaks.clear()
            account.progress.step_done("forward", t + 1, steps)
            if due:
                save()
        self.bits = held.bits()
        return held.state()

    def backward(self, save: Callable[[], None]) -> Iterator[tuple[int, Backward]]:
        """s_T -> s_0, each step differentiated on the way; the state that it arrives at is compared with the start.

        On the way w is compared by its fingerprints, and the account told as of a number that is not finite: it reads
        both in their order, so that what a wrong state leads to does not speak first.
        """
        dynamics, held, account = self._dynamics, self._held, self._account
        for t in reversed(range(held.t)):
            params = held.undo_weights(dynamics.hyper_at(self._hyper, t), t)
            account.finite.watch(t, REVERSED, torch.where(held.fingerprint() == self._marks[t], 0.0, float("nan")))
            step_hyper = dynamics.hyper_at(self._hyper, t)
            at_t = step_gradient(dynamics, dynamics.loss_at(t), t, State(params, {}), step_hyper, self._judge)
            account.counts.add(gradients=1, hvps=1)
            at_t = at_t._replace(state=held.undo_rest(at_t.grads, at_t.step_hyper, t))
            yield t, partial(adjoint_step, dynamics, at_t)
            del at_t
        account.finite.check()
        if num_wrong := held.num_wrong():
            raise ReversalError(0, num_wrong)

    def num_wrong_at_start(self) -> int:
        """Runs on to s_0, and counts what is wrong there."""
        dynamics, held = self._dynamics, self._held
        while held.t > 0 or not held.whole:
            if held.whole:
                held.undo_weights(dynamics.hyper_at(self._hyper, held.t - 1), held.t - 1)
            step_hyper = dynamics.hyper_at(self._hyper, held.t)
            _, g = _gradient(dynamics, held, step_hyper, held.t, self._judge)
            held.undo_rest(g, step_hyper, held.t)
        return max(1, held.num_wrong())


def _gradient(
    dynamics: Dynamics, held: FixedPoint, step_hyper: StepHyper, t: int, judge: Judge
) -> tuple[Tensor, Params]:
    """L and g_t, taken as the sweep takes it: where a graph is made, some operators (group norm) have other kernels.

    A step that was examined is taken once more, as it will be in the backward sweep. Of a sum over chunks that is plain
    autograd's gradient whatever was found, and processes that share the chunks may examine different steps.
    """
    params = held.weights()
    point = dynamics.layout.unpack(params)
    loss = dynamics.loss_at(t)
    value, g, _ = judge.pullback(loss, point, step_hyper)
    if judge.look(dynamics, t, State(params, {}), step_hyper) and not isinstance(loss, ChunkedLoss):
        value, g, _ = judge.pullback(loss, point, step_hyper)
    return value, dynamics.layout.pack(g)


def _check_range(peaks: list[tuple[int, Peak]]) -> None:
    """Raises for the first number that left its range."""
    sizes = torch.stack([peak.size for _, peak in peaks]).tolist()
    for (t, peak), size in zip(peaks, sizes, strict=True):
        if not size < float("inf"):
            raise NonFiniteError(t, f"the update of {peak.name}")
        if size >= LIMIT:
            raise _OutgrownError(t, peak.name, size)


def _collected(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns, by label, the factor of all steps, or the tuple of every step's."""
    by_label = {label: tuple(report[label] for report in reports) for label in reports[0]}
    return {label: values[0] if len(set(map(repr, values))) == 1 else values for label, values in by_label.items()}


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, torch takes deterministic kernels.

    Raises:
        UsageError: an operator has none; the message names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    cudnn: Any = torch.backends.cudnn
    quickest, cudnn.benchmark = cudnn.benchmark, False  # another process that goes on may time another one as quickest
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise UsageError(
            f"reversible: {str(error).split('.')[0]}; without the same bits forward and backward a step cannot be "
            "undone: use Reverse(slots=...), in a recipe mode: {name: reverse, slots: auto}"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory, cudnn.benchmark = fill, quickest
