"""What is recorded of one hypergradient on its way: counts, whether everything is finite, and how far it has come."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hyperopt_cli.checks.growth import Growth
from hyperopt_cli.errors import NonDeterministicError, NonFiniteError
from hyperopt_cli.keeper import Keeper
from hyperopt_cli.memory import peak_bytes, reset_peak
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.stopping import may_stop

T = TypeVar("T")
MET_AGAIN = "the training loss met again in the backward sweep"  # not finite: not what it was
# Called after each inner step with the phase ("forward" or "backward"), steps done and steps in the phase.
OnStep = Callable[[str, int, int], None]


@dataclass
class Counts:
    """Counts what was computed.

    Attributes:
        num_steps: inner steps.
        num_gradients: of the training loss.
        num_hvps: products with the Hessian.
    """

    num_steps: int = 0
    num_gradients: int = 0
    num_hvps: int = 0

    def add(self, steps: int = 0, gradients: int = 0, hvps: int = 0) -> None:
        """Adds to the counts; a negative number takes off."""
        self.num_steps += steps
        self.num_gradients += gradients
        self.num_hvps += hvps

    def add_steps(self, num: int) -> None:
        """Adds inner steps, each with its gradient."""
        self.add(steps=num, gradients=num)


class Finite:
    """Watches for values that are not finite.

    On the CPU each step is looked at once it is done. On a GPU that would make the host wait for the device at every
    step, so the witnesses of the steps stay there and are read once in `EVERY` steps; the step is named all the same.

    Args:
        device: of the run.
    """

    EVERY = 64

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._witnesses: list[tuple[int, str, Tensor]] = []

    @property
    def every(self) -> int:
        """The number of steps that may go by before something of them is read on the host."""
        return 1 if self._device.type == "cpu" else self.EVERY

    def watch(self, step: int, what: str, witness: Tensor) -> None:
        """Watches `what` at `step`, by a `witness` that is finite if and only if it is."""
        self._witnesses.append((step, what, witness))
        if len(self._witnesses) >= self.every:
            self.check()

    def forget(self, step: int | None = None) -> None:
        """Forgets what is watched of a step, or of all steps."""
        self._witnesses = [each for each in self._witnesses if step is not None and each[0] != step]

    def check(self) -> None:
        """Reads what is watched.

        Raises:
            NonFiniteError: for the first that is not finite.
            NonDeterministicError: a training loss had another value in the backward sweep.
        """
        witnesses, self._witnesses = self._witnesses, []
        if not witnesses:
            return
        sums = torch.stack([witness.double().sum() for _, _, witness in witnesses]).tolist()
        for (step, what, _), total in zip(witnesses, sums, strict=True):
            if not math.isfinite(total) and what == MET_AGAIN:
                raise NonDeterministicError(
                    f"inner_loss: met again at inner step {step} it had another value; every draw must be a function "
                    "of the batch (batch(t) carries a seed), and batch(t) a function of t"
                )
            if not math.isfinite(total):
                raise NonFiniteError(step, what)


class Progress:
    """Counts how far a hypergradient has come, and tells whoever watches.

    Args:
        on_step: called after each inner step.

    Attributes:
        num_done: inner steps, forward and backward, those that are taken again too.
    """

    def __init__(self, on_step: OnStep | None) -> None:
        self.num_done = 0
        self._on_step = on_step
        self._last: tuple[str, int, int] | None = None

    def step_done(self, phase: str, done: int, steps: int) -> None:
        """Records that `done` of the phase's `steps` are done."""
        self._last = phase, done, steps
        self.num_done += 1
        if self._on_step is not None:
            self._on_step(phase, done, steps)

    def step_repeated(self) -> None:
        """Records that a step was taken again; whoever watches hears the last step once more."""
        self.num_done += 1
        if self._on_step is not None and self._last is not None:
            self._on_step(*self._last)


class Account:
    """The record of one hypergradient, saved with the state of its mode.

    Args:
        steps: T.
        like: an empty tensor of the run's dtype and device.
        on_step: called after each inner step.
        keeper: saves what another process can go on from.
        resume_from: what it saved.
        ranks: the processes that take the run together.
        wanted: tells by E whether its derivative is wanted.

    Attributes:
        counts, finite, progress: what is recorded.
        growth: of the tangents or adjoints.
        inner_loss: L at every step, [T].
    """

    examines = True  # whether steps of the run are compared with central differences; not while a plan is measured

    def __init__(
        self,
        steps: int,
        like: Tensor,
        on_step: OnStep | None = None,
        keeper: Keeper | None = None,
        resume_from: dict[str, Any] | None = None,
        ranks: Ranks = ALONE,
        wanted: Callable[[float], bool] | None = None,
    ) -> None:
        self.counts, self.finite, self.progress = Counts(), Finite(like.device), Progress(on_step)
        self._wanted = wanted
        self.inner_loss = like.new_full((steps,), float("nan"))
        self.growth, self.ranks = Growth(steps, like), ranks
        self._keeper, self._resume_from, self._before_s = keeper, resume_from, 0.0
        self._saved_at: int | None = None  # the progress that was saved last
        self._device, self._start_s = like.device, time.perf_counter()
        reset_peak(like.device)

    def wants_more_than(self, value: Tensor) -> bool:
        """Returns whether the derivative is wanted of a run that ends at E = `value`; if not, it ends there."""
        return self._wanted is None or self._wanted(float(value))

    def ask_due(self) -> bool:
        """Counts a step, and returns whether what is done so far is to be saved now.

        Several processes may exchange a message here, so that all of them ask after the same steps.
        """
        return self._keeper is not None and self._keeper.due()

    def from_lead(self, value: T) -> T:
        """Returns the value of the first of the processes that take the run together, where each may have another."""
        self.meet()
        return self.ranks.from_lead(value)

    def meet(self) -> None:
        """Waits, before something is sent, for those that take the run together; raises where one has failed."""
        if self.ranks.size > 1:
            self.finite.check()
            self._barrier()

    def _barrier(self) -> None:
        """Waits for all processes, also for those that take other runs."""
        if self._keeper is not None:
            self._keeper.barrier()

    def save_if_due(self, state: Callable[[], dict[str, Any]]) -> None:
        """Asks, after a step, whether what the mode would go on from is to be saved now, and saves it.

        Where nobody saves anything, or it is saved already, the run may just end.

        Args:
            state: makes it; collective where processes divide the run.

        Raises:
            NonFiniteError: something that is watched is not finite; nothing is saved then.
        """
        if self._keeper is None:
            may_stop()
            return
        if not self.ask_due():
            return
        if self.progress.num_done == self._saved_at:
            may_stop()
            return
        self.finite.check()
        self._barrier()
        counts = [self.counts.num_steps, self.counts.num_gradients, self.counts.num_hvps]
        self._saved_at = self.progress.num_done
        done = {"progress": self._saved_at, "counts": counts, "inner_loss": self.inner_loss, "wall_s": self._wall_s}
        self._keeper.save({**done, "norms": self.growth.norms, "mode": state()})

    def step_done(self, t: int, value: Tensor) -> None:
        """Records that a step of the run is done, with its training loss.

        Args:
            t: the step.
            value: L [].
        """
        self.inner_loss[t] = value
        self.finite.watch(t, "the training loss", value)
        self.progress.step_done("forward", t + 1, self.inner_loss.shape[0])

    def peek(self, key: str) -> Any:
        """Returns an entry of the state that `resume` will return; None where there is no state."""
        return None if self._resume_from is None else self._resume_from["mode"].get(key)

    def resume(self) -> dict[str, Any] | None:
        """Returns, once, the mode's state that an interrupted process saved; the counts go on from there.

        It is taken out of what was given, so that its memory is free once the mode has taken it over.
        """
        saved, self._resume_from = self._resume_from, None
        if saved is None:
            return None
        self.counts = Counts(*saved["counts"])
        self.progress.num_done = self._saved_at = saved["progress"]
        self._before_s = saved["wall_s"]
        self.inner_loss.copy_(saved["inner_loss"])
        self.growth.load_norms(saved["norms"])
        mode: dict[str, Any] = saved.pop("mode")
        return mode

    def restart(self) -> None:
        """Begins anew: what was counted and watched so far is dropped."""
        self.counts = Counts()
        self.finite.forget()

    def retake(self, step: int, hvps: int) -> None:
        """Takes back what was recorded of a step, which is taken once more by other means."""
        self.counts.add(steps=-1, gradients=-1, hvps=-hvps)
        self.finite.forget(step)

    @property
    def _wall_s(self) -> float:
        return self._before_s + time.perf_counter() - self._start_s

    def close(self, value: Tensor, grad: Hyper, params: Params) -> Hypergradient:
        """Returns the result, once E and the hypergradient are finite.

        Raises:
            NonFiniteError: one of them is not.
            TypeError: the mode has not recorded every step.
        """
        self.finite.check()
        if num := int(self.inner_loss.isnan().sum()):
            raise TypeError(f"inner_loss: {num} steps are not recorded; a mode calls account.step_done after each")
        for what, x in [("the outer objective", value), *((f"the hypergradient of {n}", g) for n, g in grad.items())]:
            if not x.isfinite().all():
                raise NonFiniteError(self.inner_loss.shape[0], what)
        stats = {
            "wall_s": self._wall_s,
            "peak_bytes": peak_bytes(self._device),
            "num_steps": self.counts.num_steps,
            "num_gradients": self.counts.num_gradients,
            "num_hvps": self.counts.num_hvps,
            "inner_loss": self.inner_loss,
            "progress": self.progress.num_done,
        }
        return Hypergradient(value, grad, params, stats)


def listed(tree: Any) -> Any:
    """Returns a state with lists in place of iterators, which can be sent to another process."""
    return tree_map_only(Iterator, lambda items: [listed(item) for item in items], tree)
