"""What a mode is: a problem and lambda in, a hypergradient out; and the accounts that every mode keeps on the way."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hyperopt_cli.checks.growth import Growth
from hyperopt_cli.errors import NonDeterministicError, NonFiniteError
from hyperopt_cli.memory import peak_bytes, reset_peak
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.stopping import may_stop

MET_AGAIN = "the training loss met again on the way back"  # not finite: not what it was
# Called after each inner step with the phase ("forward" or "backward"), steps done and steps in the phase.
OnStep = Callable[[str, int, int], None]


class Hypergradient(NamedTuple):
    """What a mode returns.

    Attributes:
        value: E, [].
        grad: dE/dlambda, a dictionary like `hyper`.
        params: R(s_T), named.
        stats: `wall_s`; `peak_bytes`, the peak of the process's resident memory during the call (of the allocated
            memory on a GPU); `num_steps`, inner steps taken; `num_gradients` and `num_hvps`; `inner_loss`, L at every
            step, [T]; `progress`, steps there and back, counted for checkpoints; `bias`, what biases the
            hypergradient, only where it is not exact; `checks`, what the comparison with central differences has to say
            of it, only where that is something ("not judged", "surrogate"); `growth` of the tangents or adjoints over
            the run, and `digits`, the decimal digits that it leaves (`checks/growth.py`). Modes add their own.
    """

    value: Tensor
    grad: Hyper
    params: Params
    stats: dict[str, Any]


def told_of_checks(said: Sequence[str]) -> dict[str, str]:
    """`stats["checks"]`, where there is something to say."""
    return {"checks": "; ".join(said)} if said else {}


class Mode(ABC):
    """An order of multiplication for the chain of Jacobians of a run."""

    @abstractmethod
    def differentiate(self, problem: Problem, hyper: Hyper, account: "Account") -> Hypergradient:
        """The hypergradient of `problem` at `hyper`."""

    def bias(self, steps: int) -> str | None:
        """What makes the hypergradient of a run of `steps` steps differ from the exact one, a phrase; None: nothing."""
        return None

    @property
    def running(self) -> "Mode":
        """The mode that does the work: itself, or the one that it has chosen last."""
        return self

    def smaller(self, problem: Problem, hyper: Hyper) -> "Mode | None":
        """What to take in its place where memory was lacking: with fewer columns at once, or fewer states kept.

        None: it can't do with less.
        """
        return None

    def decisions(self) -> dict[str, Any]:
        """What it has decided by measuring, so that a run that is taken up again goes on alike; for a checkpoint."""
        return {}

    def decided(self, decisions: Mapping[str, Any]) -> None:  # noqa: B027
        """Takes over what `decisions` gave."""

    def __reduce__(self) -> Any:
        """Travels to another process as what it was made of, and finds out there what it has found out here."""
        if not is_dataclass(self):
            return super().__reduce__()
        return partial(type(self), **{each.name: getattr(self, each.name) for each in fields(self) if each.init}), ()


class Keeper(Protocol):
    """Whoever keeps what a hypergradient has computed so far, so that another process can go on from there."""

    def due(self) -> bool:
        """Whether it is to be kept now; asked after every inner step."""

    def keep(self, left: dict[str, Any]) -> None:
        """Keeps it; may raise, to end the run.

        Args:
            left: dictionaries, lists, tensors, numbers and text; an iterator stands for a list whose items are made
                one at a time. `left["progress"]` counts inner steps, there and back.
        """

    def meet(self) -> None:
        """Waits until all processes that share the run are here; raises where one has failed on its way."""


def whole(tree: Any) -> Any:
    """What is left, with lists for iterators: as another process can be told."""
    return tree_map_only(Iterator, lambda items: [whole(item) for item in items], tree)


class Account:
    """Counts, time, memory, the watch for values that are not finite, and what is left for later, of one hypergradient.

    On the CPU each step is looked at once it is done. On a GPU that would make the host wait for the device at every
    step, so the witnesses of the steps stay there and are read once in `EVERY` steps; the step is named all the same.
    """

    EVERY = 64
    examines = True  # whether steps of the run are compared with central differences; not while a plan is measured

    def __init__(
        self,
        steps: int,
        like: Tensor,
        on_step: OnStep | None = None,
        keeper: Keeper | None = None,
        left: dict[str, Any] | None = None,
    ) -> None:
        self.num_steps = self.num_gradients = self.num_hvps = 0
        self.inner_loss = like.new_full((steps,), float("nan"))
        self.growth = Growth(steps, like)
        self._keeper, self._left, self._progress, self._before_s = keeper, left, 0, 0.0
        self._kept: int | None = None  # the progress that was kept last
        self._device, self._on_step = like.device, on_step
        self._last_done: tuple[str, int, int] | None = None
        self._witnesses: list[tuple[int, str, Tensor]] = []
        self._start = time.perf_counter()
        reset_peak(like.device)

    def step_done(self, phase: str, done: int, steps: int) -> None:
        """Tells whoever watches that `done` of the phase's `steps` are done."""
        self._last_done = phase, done, steps
        self._progress += 1
        if self._on_step is not None:
            self._on_step(phase, done, steps)

    def step_repeated(self) -> None:
        """A step was taken again: whoever watches hears that the run goes on, and nothing else."""
        self._progress += 1
        if self._on_step is not None and self._last_done is not None:
            self._on_step(*self._last_done)

    def watch(self, step: int, what: str, witness: Tensor) -> None:
        """`witness` is finite if and only if `what` is at `step`."""
        self._witnesses.append((step, what, witness))
        if len(self._witnesses) >= self.every:
            self.check()

    @property
    def due(self) -> bool:
        """Whether what is done so far is to be kept now."""
        return self._keeper is not None and self._keeper.due()

    def offer(self, left: Callable[[], dict[str, Any]]) -> None:
        """After a step: what a mode would go on from, taken if it is to be kept now and everything is finite.

        Where it is kept already, or nobody keeps anything, the run may just end.
        """
        if not self.due or self._progress == self._kept:
            may_stop()
            return
        self.check()
        self.meet()
        assert self._keeper is not None
        counts = [self.num_steps, self.num_gradients, self.num_hvps]
        done = {"progress": self._progress, "counts": counts, "inner_loss": self.inner_loss, "wall_s": self._wall_s}
        done["norms"] = self.growth.norms
        self._kept = self._progress
        self._keeper.keep({**done, "mode": left()})

    def meet(self) -> None:
        """Before something is said to other processes: all of them are here, and none has failed."""
        if self._keeper is not None:
            self._keeper.meet()

    def begun_with(self, key: str) -> Any:
        """An entry of what a mode left when it was interrupted, before `left` takes all of it; None without one."""
        return None if self._left is None else self._left["mode"].get(key)

    def left(self) -> dict[str, Any] | None:
        """What a mode left when it was interrupted, on the host, once; the counts go on from there.

        It is taken out of what was given, so that its memory is free once the mode has taken it over.
        """
        left, self._left = self._left, None
        if left is None:
            return None
        self.num_steps, self.num_gradients, self.num_hvps = left["counts"]
        self._progress, self._before_s = left["progress"], left["wall_s"]
        self._kept = self._progress
        self.inner_loss.copy_(left["inner_loss"])
        if "norms" in left:  # not in a checkpoint of an earlier version
            self.growth.found(left["norms"])
        mode: dict[str, Any] = left.pop("mode")
        return mode

    def forget(self) -> None:
        """What was left is of no use: the counts begin anew."""
        self.num_steps = self.num_gradients = self.num_hvps = 0
        self._witnesses.clear()

    def take_back(self, step: int, hvps: int) -> None:
        """A step is taken once more by other means: what was counted and is watched of it counts for nothing."""
        self.uncount(1)
        self.num_hvps -= hvps
        self._witnesses = [each for each in self._witnesses if each[0] != step]

    def uncount(self, steps: int) -> None:
        """Steps that were taken are of no use: they will be taken once more, or should not have been."""
        self.num_steps -= steps
        self.num_gradients -= steps

    @property
    def _wall_s(self) -> float:
        return self._before_s + time.perf_counter() - self._start

    @property
    def every(self) -> int:
        """How many steps may go by before something of them is read on the host."""
        return 1 if self._device.type == "cpu" else self.EVERY

    def check(self) -> None:
        """Raises `NonFiniteError` for the first witness that is not finite."""
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

    def close(self, value: Tensor, grad: Hyper, params: Params) -> Hypergradient:
        """The result, once E and the hypergradient have been found finite."""
        self.check()
        for what, x in [("the outer objective", value), *((f"the hypergradient of {n}", g) for n, g in grad.items())]:
            if not x.isfinite().all():
                raise NonFiniteError(self.inner_loss.shape[0], what)
        stats = {
            "wall_s": self._wall_s,
            "peak_bytes": peak_bytes(self._device),
            "num_steps": self.num_steps,
            "num_gradients": self.num_gradients,
            "num_hvps": self.num_hvps,
            "inner_loss": self.inner_loss,
            "progress": self._progress,
        }
        return Hypergradient(value, grad, params, stats)
