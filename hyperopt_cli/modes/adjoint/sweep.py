"""The adjoint sweep, over any source of the run's past: the recursion of reverse mode and of reversible mode.

    alpha_T = dE/ds_T,    dE/dlambda = its direct part, then
    dE/dlambda += alpha_{t+1} B_t,    alpha_t = alpha_{t+1} A_t        for t = T-1 ... 0

with A_t = ds_{t+1}/ds_t and B_t = ds_{t+1}/dlambda_t dlambda_t/dlambda. One step (`adjoint_step`) is the
vector-Jacobian product of the update rule U(s_t, g_t, lambda_t), then that of the gradient g_t at P(s_t, lambda_t):

    (a_s, a_g, a_lambda_t) = alpha_{t+1} dU
    alpha_t      = a_s + (H a_g) dP/ds_t
    a_lambda_t  += (d2L/dw dlambda_t)^T a_g + (H a_g) dP/dlambda_t

The adjoints of lambda_t, `a_at`, then go back through the schedule, some steps at a time (`Sweep.sum_up`):
dE/dlambda += a_lambda_t dlambda_t/dlambda.

Franceschi et al. 2017, algorithm 1 (Reverse-HG), https://proceedings.mlr.press/v70/franceschi17a; the sweep of
Maclaurin et al. 2015, algorithm 2, https://arxiv.org/abs/1502.03492, for any update rule.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from hyperopt_cli.checks.judge import Judge
from hyperopt_cli.checks.outer import OuterJudge
from hyperopt_cli.checks.replayed import ROUNDED, slack
from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import gradient_and_pullback, leaf, vjp
from hyperopt_cli.dynamics.dynamics import Dynamics, State, train_step
from hyperopt_cli.dynamics.stepping import PartitionedStepAt
from hyperopt_cli.errors import UsageError
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.account import MET_AGAIN, Account
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Batch, Hyper

# lambda may lie on the host, and its schedule is a few small operators: adjoints of lambda_t are pulled back through it
# some steps at a time, so that few steps wait for the device; many small tensors that stay leave holes in the memory
MOST_WAITING, MOST_BYTES = 16, 2**20


class StepGradient(NamedTuple):
    """The gradient of one step, ready to be differentiated.

    Attributes:
        t: which step.
        state: s_t.
        step_hyper: lambda_t.
        value: L.
        grads: g_t, held like the state.
        pullback: `u -> (H u, (d2L/dw dlambda)^T u)` at s_t, named; may be called once.
    """

    t: Any
    state: State
    step_hyper: StepHyper
    value: Tensor
    grads: Params
    pullback: Callable[[Params], tuple[Params, StepHyper]]


# alpha_{t+1} -> alpha_t and the adjoint of lambda_t, at a step that is met in the backward sweep; may be called once
Backward = Callable[[State], tuple[State, StepHyper]]


class Steps(NamedTuple):
    """The two steps of a run, forward and backward: as torch runs them, or compiled.

    Attributes:
        dynamics: whose.
        hyper: lambda.
        step: `forward_and_backward_step` at t.
        judge: says how the gradient is differentiated, step by step.
    """

    dynamics: Dynamics
    hyper: Hyper
    step: PartitionedStepAt
    judge: Judge

    def train(self, t: int, state: State, account: Account) -> tuple[State, Tensor]:
        """Takes s_t to s_{t+1}, and returns it with L."""
        step_hyper = self._hyper_at(t)
        if self.step.is_compiled:
            result = self.forward_and_backward(t, state, account)[0]
        else:
            account.counts.add_steps(1)
            result = train_step(self.dynamics, self.dynamics.problem.batch(t), t, state, step_hyper)
            self.judge.look(self.dynamics, t, state, step_hyper)
        return result

    def forward_and_backward(self, t: int, state: State, account: Account) -> tuple[tuple[State, Tensor], Backward]:
        """Takes the compiled step, which saves what its way back needs, and returns both."""
        account.counts.add_steps(1)
        step_hyper = self._hyper_at(t)
        outputs, saved = self.step.forward(t, state, state, step_hyper)  # an adjoint is like a state
        self.judge.look(self.dynamics, t, state, step_hyper, unseen=True)
        if self.judge.takes_programs:
            raise UsageError(
                "compile: what is compiled is a double backward, which is not the derivative of this training "
                "gradient; set compile: false"
            )

        def backward(adjoint: State) -> tuple[State, StepHyper]:
            account.counts.add(hvps=1)
            before: tuple[State, StepHyper] = self.step.backward(saved, adjoint)
            return before

        return outputs, backward

    def saved_bytes(self) -> int:
        """Returns the bytes that a compiled step saves beside its state; its batch counts if no other has it."""
        state, batch = self.dynamics.start, self.dynamics.problem.batch
        _, saved = self.step.forward(0, state, state, self._hyper_at(0))
        others = (
            {_memory(x) for x in tree_leaves(batch(1)) if isinstance(x, Tensor)}
            if self.dynamics.problem.steps > 1
            else set()
        )
        return state_bytes(saved.more) + state_bytes([x for x in saved.batch if _memory(x) not in others])

    def backward_from(self, t: int, state: State, account: Account, of_the_run: bool = True) -> Backward:
        """Returns the backward of step t from s_t alone; its gradient is taken again, now.

        Args:
            t: the step.
            state: s_t.
            account: records it, and whether L is what it was.
            of_the_run: whether `state` is the one that the run had.
        """
        account.counts.add(gradients=1, hvps=1)
        step_hyper = self._hyper_at(t)
        if self.step.is_compiled:
            (_, value), saved = self.step.forward(t, state, state, step_hyper)
            backward: Backward = lambda adjoint: self.step.backward(saved, adjoint)  # noqa: E731
        else:
            at_t = step_gradient(self.dynamics, self.dynamics.loss_at(t), t, state, step_hyper, self.judge)
            value, backward = at_t.value, partial(adjoint_step, self.dynamics, at_t)
        if of_the_run:
            known = account.inner_loss[t]
            apart = ROUNDED * known.abs() if self.step.is_compiled else slack(known)
            account.finite.watch(t, MET_AGAIN, torch.where((value.to(known) - known).abs() > apart, float("nan"), 0.0))
        return backward

    def _hyper_at(self, t: int) -> StepHyper:
        return self.dynamics.hyper_at(self.hyper, t)


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def backward_step(
    dynamics: Dynamics, batch: Batch, t: Any, state: State, step_hyper: StepHyper, adjoint: State
) -> tuple[State, StepHyper]:
    """Takes the adjoint back through a step, which is linearised at s_t for that.

    Args:
        dynamics: of the run.
        batch: that of step t.
        t: the step.
        state: s_t.
        step_hyper: lambda_t.
        adjoint: alpha_{t+1}, like a state.

    Returns:
        alpha_t, and the adjoint of lambda_t.
    """
    return adjoint_step(dynamics, step_gradient(dynamics, dynamics.loss_on(batch), t, state, step_hyper), adjoint)


def forward_and_backward_step(
    dynamics: Dynamics, batch: Batch, t: Any, state: State, step_hyper: StepHyper, adjoint: State
) -> tuple[tuple[State, Tensor], tuple[State, StepHyper]]:
    """Takes a training step, and the adjoint back through it: what is compiled, and partitioned into the two.

    As torch runs them, a sweep calls `train_step` and `adjoint_step`.

    Args:
        dynamics: of the run.
        batch: that of step t.
        t: the step.
        state: s_t.
        step_hyper: lambda_t.
        adjoint: alpha_{t+1}, like a state.

    Returns:
        s_{t+1} and L; alpha_t and the adjoint of lambda_t.
    """
    outputs = train_step(dynamics, batch, t, state, step_hyper)
    return outputs, backward_step(dynamics, batch, t, state, step_hyper, adjoint)


def step_gradient(
    dynamics: Dynamics, loss: Loss, t: Any, state: State, step_hyper: StepHyper, judge: Judge | None = None
) -> StepGradient:
    """Takes the gradient at s_t with its pullback.

    Args:
        dynamics: of the run.
        loss: L on the batch of step t.
        t: the step.
        state: s_t.
        step_hyper: lambda_t.
        judge: says how the pullback is taken; None: by a double backward.
    """
    point = dynamics.layout.unpack(dynamics.point(state, step_hyper, t))
    take = gradient_and_pullback if judge is None else judge.pullback
    value, g, pullback = take(loss, point, step_hyper)
    return StepGradient(t, state, step_hyper, value, dynamics.layout.pack(g), pullback)


@dataclass
class Sweep:
    """How far a sweep has come.

    Attributes:
        adjoint: alpha.
        total: dE/dlambda, as far as it is summed up.
        waiting: adjoints of lambda_t that are not yet in it, each with its t.
        done: steps.
        value, by_hyper, params: of the objective at s_T.
    """

    adjoint: State
    total: Hyper
    waiting: list[tuple[int, StepHyper]]
    done: int
    value: Tensor
    by_hyper: Hyper
    params: Params

    @classmethod
    def at_end(
        cls,
        dynamics: Dynamics,
        hyper: Hyper,
        end: State,
        account: Account,
        save: Callable[[], None],
        judge: OuterJudge | None,
    ) -> "Sweep":
        """Begins a sweep at s_T: evaluates E and its gradient, and takes alpha_T = dE/ds_T.

        Args:
            dynamics: of the run.
            hyper: lambda.
            end: s_T.
            account: records E.
            save: called between two chunks of the outer objective.
            judge: takes the gradient of the objective; None: autograd.
        """
        params = dynamics.layout.unpack(dynamics.result(end))
        objective = outer_objective(dynamics.problem, params, hyper, save, judge)
        account.finite.watch(dynamics.problem.steps, "the outer objective", objective.value)
        adjoint = _result_adjoint(dynamics, end, objective.by_params)
        zeros = {name: torch.zeros_like(value) for name, value in hyper.items()}
        return cls(adjoint, zeros, [], 0, objective.value, objective.by_hyper, params)

    def step_back(self, t: int, backward: Backward) -> None:
        """Takes the adjoint back through step t: alpha_{t+1} becomes alpha_t, and lambda_t's adjoint waits."""
        self.adjoint, a_at = backward(self.adjoint)
        self.waiting.append((t, a_at))
        self.done += 1

    def sum_up(self, dynamics: Dynamics, hyper: Hyper) -> None:
        """Pulls the waiting adjoints of lambda_t back through the schedule and adds them to the total."""
        by_hyper = _through_schedule(dynamics, hyper, self.waiting)
        self.total = {name: self.total[name] + by_hyper[name] for name in self.total}
        self.waiting.clear()

    @property
    def many_wait(self) -> bool:
        """Whether so many adjoints of lambda_t wait that they are to be summed up."""
        return len(self.waiting) >= MOST_WAITING or len(self.waiting) * state_bytes(self.waiting[-1][1]) > MOST_BYTES

    def state_dict(self) -> dict[str, Any]:
        """Returns the sweep as dictionaries and lists, which a checkpoint can hold."""
        waiting = [[t, a_at] for t, a_at in self.waiting]
        at_end = {"value": self.value, "by_hyper": self.by_hyper, "params": self.params}
        return {
            "adjoint": self.adjoint.state_dict(),
            "total": self.total,
            "waiting": waiting,
            "done": self.done,
            **at_end,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], dynamics: Dynamics, hyper: Hyper) -> "Sweep":
        """Makes a sweep from what `state_dict` returned, on the devices of lambda and of the state."""
        device = dynamics.like.device
        waiting, value, params = tree_map_only(
            Tensor, lambda x: x.to(device), (state["waiting"], state["value"], state["params"])
        )
        total, by_hyper = (
            {name: x.to(hyper[name].device) for name, x in state[key].items()} for key in ("total", "by_hyper")
        )
        adjoint, pairs = State.from_state_dict(state["adjoint"], device), [(t, a_at) for t, a_at in waiting]
        return cls(adjoint, total, pairs, state["done"], value, by_hyper, params)


class PastStates(ABC):
    """A training run forward, then its steps met again, the last one first; and what another process resumes from.

    Attributes:
        slots: states that may be held.
        needs_same_bits: a process that resumes from it needs gradients of the same bits.
    """

    slots: int
    needs_same_bits = False

    @abstractmethod
    def forward(self, save: Callable[[], None]) -> State:
        """Runs the training, or the rest of it, and returns s_T.

        From here on, until `backward` begins, `state_dict` stands for s_T: it may hold s_{T-1}, from which the last
        step is taken again.

        Args:
            save: called after each step, when `state_dict` may be asked for.
        """

    @abstractmethod
    def backward(self, save: Callable[[], None]) -> Iterator[tuple[int, Backward]]:
        """Yields each step, the last one first: t, and its backward; `save` is called after steps taken again."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns where the run stands, once the adjoint has gone back through the step that was met last."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` stood, for the same run and as many slots."""


def resume_state(past: PastStates, sweep: Sweep | None) -> dict[str, Any]:
    """Returns what another process resumes from."""
    return {
        "sweep": None if sweep is None else sweep.state_dict(),
        "kind": type(past).__name__,
        "past": past.state_dict(),
        "slots": past.slots,
        "same_bits": past.needs_same_bits,
    }


def resumed(past: PastStates, saved: dict[str, Any] | None, dynamics: Dynamics, hyper: Hyper) -> Sweep | None:
    """Loads what `resume_state` returned.

    Args:
        past: takes over its part of the state.
        saved: the state, which is emptied to free its memory; None or empty: there is nothing to resume from.
        dynamics: of the run.
        hyper: lambda.

    Returns:
        The sweep; None where it had not begun.
    """
    if not saved:
        return None
    sweep = None if saved["sweep"] is None else Sweep.from_state_dict(saved["sweep"], dynamics, hyper)
    past.load_state_dict(saved["past"])
    saved.clear()
    return sweep


def backward_sweep(
    dynamics: Dynamics,
    hyper: Hyper,
    past: PastStates,
    account: Account,
    num_swept: int | None = None,
    sweep: Sweep | None = None,
    judge: OuterJudge | None = None,
) -> Hypergradient:
    """Takes the hypergradient from a run and its way back, which may stop short of its beginning.

    Args:
        dynamics: of the run.
        hyper: lambda.
        past: the run.
        account: records every step.
        num_swept: steps to go back; None: T.
        sweep: where another process was interrupted; None: at its beginning, or before s_T.
        judge: takes the gradient of the objective; None: autograd, whatever that gives.
    """
    num = dynamics.problem.steps if num_swept is None else num_swept

    def save() -> None:
        account.save_if_due(lambda: resume_state(past, sweep))

    if sweep is None:
        at_end = Sweep.at_end(dynamics, hyper, past.forward(save), account, save, judge)
        if not account.wants_more_than(at_end.value):
            return account.close(at_end.value, {}, at_end.params)
        account.growth.adjoint(dynamics.problem.steps, at_end.adjoint.params)
        sweep = at_end
    for t, backward in past.backward(save):
        sweep.step_back(t, backward)
        del backward  # its gradient's graph, before the next one is made
        if sweep.many_wait or sweep.done == num:
            sweep.sum_up(dynamics, hyper)
        account.growth.adjoint(t, sweep.adjoint.params)
        account.finite.watch(t, "the adjoint", torch.stack([x.sum().double() for x in sweep.adjoint.params.values()]))
        account.progress.step_done("backward", sweep.done, num)
        save()
    total = {name: d + sweep.total[name] for name, d in sweep.by_hyper.items()}
    if num == dynamics.problem.steps:
        with torch.enable_grad():
            h = tree_map(leaf, hyper)
            start = dynamics.derivable("init", dynamics.initial, (h,))(h)
        (by_init,) = vjp(start, (h,), sweep.adjoint)
        total = {name: total[name] + by_init[name] for name in total}
    return account.close(sweep.value, total, sweep.params)


def _through_schedule(dynamics: Dynamics, hyper: Hyper, waiting: list[tuple[int, StepHyper]]) -> Hyper:
    """Pulls adjoints of lambda_t, each with its t, back through the schedule."""
    with torch.enable_grad():
        h = tree_map(leaf, hyper)
        schedules = [partial(dynamics.plain_hyper_at, step=t) for t, _ in waiting]
        given = [dynamics.derivable("schedule", schedule, (h,))(h) for schedule in schedules]
    (by_hyper,) = vjp(given, (h,), [a_at for _, a_at in waiting])
    return cast(Hyper, by_hyper)


def adjoint_step(dynamics: Dynamics, at_t: StepGradient, adjoint: State) -> tuple[State, StepHyper]:
    """Takes alpha_{t+1} to alpha_t, and returns it with the adjoint of lambda_t."""
    layout, t = dynamics.layout, at_t.t
    with torch.enable_grad():
        state, at, g = tree_map(leaf, (at_t.state, at_t.step_hyper, at_t.grads))
        point = dynamics.derivable("point", lambda s, h: dynamics.point(s, h, t), (state, at))(state, at)
        after = dynamics.derivable("update", lambda s, d, h: dynamics.update(s, d, h, t), (state, g, at))(state, g, at)
    a_state, a_g, a_at = vjp(after, (state, g, at), adjoint)
    a_point, a_at_loss = at_t.pullback(layout.unpack(a_g))
    a_state_point, a_at_point = vjp(point, (state, at), layout.pack(a_point))
    a_at = tree_map(lambda x, y, z: x + y + z, a_at, a_at_loss, a_at_point)
    return tree_map(torch.add, a_state, a_state_point), a_at


def _result_adjoint(dynamics: Dynamics, end: State, by_params: Params) -> State:
    """Returns alpha_T = dE/dR dR/ds_T."""
    with torch.enable_grad():
        state = tree_map(leaf, end)
        outcome = dynamics.derivable("result", dynamics.result, (state,))(state)
    adjoint: State = vjp(outcome, (state,), dynamics.layout.pack(by_params))[0]
    return adjoint
