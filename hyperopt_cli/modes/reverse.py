"""Reverse mode: the adjoint of the state is swept back through the run (`adjoint/sweep.py` has the recursion).

Synonyms: backpropagation through training, unrolled differentiation, reverse-HG; with slots, checkpointing or revolve;
with a window, truncated backpropagation, K-RMD; along a line, DrMAD.

    dE/dlambda = sum over t of alpha_{t+1} B_t,    alpha_T = dE/ds_T,    alpha_t = alpha_{t+1} A_t

The sweep wants s_{T-1}, ..., s_0, the last one first. Where it takes them from is the choice:

| | time: steps + gradients and HVPs of the sweep | memory in states | exact |
|---|---|---|---|
| slots None, "all" | T + T (1 gradient + 1 HVP) | T | yes |
| slots n | E(T, n) + 1 + the same (`adjoint/replay.py`); with n = 50 of T = 1,000, 1,949 steps | n | yes, bit for bit |
| window k | as without, but sweeps k steps, and keeps or recomputes no others | k, or n slots | no |
| path "linear" | T + the same; nothing is recomputed | 2 | no |

slots "auto" takes as many as fit into the memory that is free at the first hypergradient. Slots may lie farther away,
in the host's memory or on the disk (`adjoint/places.py`), while less is recomputed.

window: the sweep ends at s_{T-k}, which is taken for a constant: what lambda did before, init included, is left out.
The bias falls with k as fast as the adjoint does: exponentially where the loss is strongly convex around the end.
Shaban, Cheng, Hatch and Boots 2019, "Truncated back-propagation for bilevel optimization" (K-RMD),
https://arxiv.org/abs/1810.10667. path: see `adjoint/straight_line.py`.

Prefer all slots where they fit, "auto" where they may not, host and disk before fewer than about 5% of T. Prefer a
window for what acts up to the end (regularisers, data weights), not for schedules; the line only where two states are
all that fits and no rule is reversible. Prefer forward for a few hyperparameters and a long horizon.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_map

from hyperopt_cli.checks.judge import Judge
from hyperopt_cli.checks.verdict import Circumstances
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.sizes import size_of
from hyperopt_cli.dynamics.stepping import PartitionedStepAt
from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.memory import available_bytes, state_bytes, taken_by
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.places import ALLOWED, Places, SnapshotStack
from hyperopt_cli.modes.adjoint.replay import Replayed
from hyperopt_cli.modes.adjoint.segments import Segments, segment_length
from hyperopt_cli.modes.adjoint.straight_line import Line
from hyperopt_cli.modes.adjoint.sweep import (
    PastStates,
    Steps,
    adjoint_step,
    backward_sweep,
    forward_and_backward_step,
    resumed,
    step_gradient,
)
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.compilation import check_compile, compilation_of, stats_of_compilation, without_compiling
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.planning import reverse_cost
from hyperopt_cli.modes.planning.prediction import Basis, Prediction
from hyperopt_cli.modes.result import Hypergradient, stats_of_checks
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.program import Compilation
from hyperopt_cli.ranks.group import ALONE, Ranks

STEP = "reverse"


@dataclass(frozen=True)
class Reverse(Mode):
    """Reverse mode.

    `stats["slots"]` is how many states may be held at once for the sweep.

    Args:
        slots: states that are kept, the one that the run starts from included. None or "all": every one; "auto": as
            many as fit into the memory that is free; a number of them on the device; or a mapping of such numbers,
            `{"device": 20, "host": 200, "disk": 0}`. What is not kept is computed again.
        window: sweep only the last so many steps; None: all of them.
        compile: each step, forward and backward, as a compiled function; "auto": where the horizon repays it.
        path: "linear": states on the straight line from s_0 to s_T; None: those of the run.

    Raises:
        ValueError: any other value, or both slots and a path.
    """

    has_backward: ClassVar[bool] = True

    slots: int | str | Mapping[str, int] | None = None
    window: int | None = None
    path: str | None = None
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.slots, str):
            if self.slots not in ("all", "auto"):
                raise ValueError(f"slots: got {self.slots!r}; allowed are {ALLOWED}")
        elif self.slots is not None:
            Places.of(self.slots)
        whole = isinstance(self.window, int) and not isinstance(self.window, bool)
        if self.window is not None and not (whole and self.window >= 1):
            raise ValueError(f"window: got {self.window!r}; allowed is None (every step) or a number of at least 1")
        if self.path not in (None, "linear"):
            raise ValueError(f'path: got {self.path!r}; allowed is None (the states of the run) or "linear"')
        if self.path is not None and self.slots is not None:
            raise ValueError("path: it stands for the states that slots would keep; give one of path and slots")
        check_compile(self.compile)

    @property
    def may_compile_steps(self) -> bool:
        """Whether its steps are compiled where the horizon repays it."""
        return self.compile == "auto"

    def price(self, num: int, steps: int) -> float:
        """Returns 1 plain run for the way there, and 3 for the steps that are swept.

        Args:
            num: the number of hyperparameters.
            steps: the horizon T.
        """
        return 1.0 + 3.0 * self._num_swept(steps) / steps

    def predictions(self, basis: Basis) -> Iterable[Prediction]:
        """Predicts all states kept, and ever fewer slots.

        Args:
            basis: the problem, and what was measured of it.
        """
        return reverse_cost.predictions(self, basis)

    def bias(self, steps: int) -> str | None:
        """Says how many steps the window leaves out, and whether states lie on a straight line; None: neither."""
        left_out = self._num_swept(steps) < steps
        parts = [f"truncated: only the last {self.window} of {steps} steps"] if left_out else []
        if self.path is not None and steps > 1:
            parts.append("states on a straight line (DrMAD)")
        return "; ".join(parts) or None

    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        """Sweeps the adjoint back through the run (Franceschi et al. 2017, algorithm 1).

        Args:
            problem: the training run.
            hyper: lambda, detached.
            account: records the run.
            measurements: of earlier hypergradients; new ones are added.
        """
        judge = measurements.judge("reverse")
        dynamics = judge.watching(Dynamics.of(problem, hyper), hyper, account.examines)
        steps, compilation = self.steps(dynamics, hyper, measurements, account.ranks)
        try:
            out = self._swept(dynamics, hyper, steps, measurements, account)
        except (UsageError, VerificationError) as error:
            decided_for = STEP, Circumstances.of(dynamics, hyper)
            measurements.compilations[decided_for] = without_compiling(self.compile, compilation, error)
        else:
            stats = stats_of_compilation(compilation) | stats_of_checks(judge.notes)
            return out._replace(stats=out.stats | stats)
        account.restart()
        return self.differentiate(problem, hyper, account, measurements)

    def smaller(
        self, problem: Problem, hyper: Hyper, measurements: Measurements, ranks: Ranks = ALONE
    ) -> "Reverse | None":
        """Returns reverse mode with half as many states in memory; those on the disk stay there.

        Args:
            problem: the training run.
            hyper: lambda.
            measurements: of earlier hypergradients.
            ranks: the processes that take the run together.
        """
        if self.path is not None:
            return None
        num = self._num_swept(problem.steps)
        now = self._places(Dynamics.of(problem, hyper), hyper, num, measurements, None, ranks)
        halved = Places(now.device // 2, now.host // 2, now.disk)
        if sum(halved) == 0 or halved == now:
            return None
        return replace(self, slots=halved._asdict() if halved.host or halved.disk else halved.device)

    def _swept(
        self, dynamics: Dynamics, hyper: Hyper, steps: Steps, measurements: Measurements, account: Account
    ) -> Hypergradient:
        num, saved = self._num_swept(dynamics.problem.steps), account.resume()
        places = self._places(dynamics, hyper, num, measurements, saved, account.ranks)

        def gone_back(past: PastStates) -> Hypergradient:
            if saved and saved["kind"] != type(past).__name__:  # steps are compiled now, or no longer
                account.restart()
                saved.clear()
            sweep = resumed(past, saved, dynamics, hyper)
            out = backward_sweep(dynamics, hyper, past, account, num, sweep, steps.judge.outer)
            return out._replace(stats={**out.stats, "slots": past.slots})

        if self.path is not None:
            return gone_back(Line(steps, account, num))
        if steps.step.is_compiled and (length := self._segment_length(steps, num, places)) is not None:
            return gone_back(Segments(steps, account, num, length, sum(places)))
        with SnapshotStack.on(places, dynamics.like.device) as snapshots:
            return gone_back(Replayed(steps, account, num, snapshots, sum(places)))

    def _segment_length(self, steps: Steps, num: int, places: Places) -> int | None:
        """Steps that are kept whole at a time; None where all that fits is states, or these lie elsewhere."""
        if places.host or places.disk:
            return None
        return segment_length(num, sum(places), 1 + steps.saved_bytes() / max(1, state_bytes(steps.dynamics.start)))

    def steps(
        self, dynamics: Dynamics, hyper: Hyper, measurements: Measurements, ranks: Ranks = ALONE
    ) -> tuple[Steps, Compilation]:
        """Returns the steps of the run, compiled or not, and the decision about that.

        Args:
            dynamics: of the run.
            hyper: lambda.
            measurements: of earlier hypergradients; new ones are added.
            ranks: the processes that take the run together.
        """
        judge, whole = measurements.judge("reverse"), measurements.partitioned_step(STEP)
        step = PartitionedStepAt(dynamics, forward_and_backward_step, whole, compiled=False)
        step_hyper = dynamics.hyper_at(hyper, 0)
        if dynamics.watch is not None:
            judge.look(dynamics, 0, dynamics.start, step_hyper, unseen=True)
        if judge.takes_programs and self.compile == "auto":
            made = Compilation(False, "not compiled, for the derivative of a list of operators is not")
        else:
            example = 0, dynamics.start, step_hyper, tree_map(torch.ones_like, dynamics.start)
            made_for = Circumstances.of(dynamics, hyper)
            made = compilation_of(self.compile, STEP, made_for, step, example, measurements, ranks)
        step.is_compiled = made.compiled
        return Steps(dynamics, hyper, step, judge), made

    def _num_swept(self, steps: int) -> int:
        return steps if self.window is None else min(self.window, steps)

    def _places(
        self,
        dynamics: Dynamics,
        hyper: Hyper,
        num: int,
        measurements: Measurements,
        saved: Mapping[str, Any] | None,
        ranks: Ranks,
    ) -> Places:
        """Of at most `num` states; what was found free stays for a run that was interrupted."""
        if self.slots is None or self.slots == "all":
            return Places(device=num)
        if isinstance(self.slots, str):
            return Places(device=saved["slots"] if saved else _num_that_fit(dynamics, hyper, num, measurements, ranks))
        return Places.of(self.slots).at_most(num)


def _num_that_fit(dynamics: Dynamics, hyper: Hyper, most: int, measurements: Measurements, ranks: Ranks) -> int:
    """Returns as many slots as fitted everywhere when a problem of that size was met first."""
    size = repr(size_of(dynamics, hyper))
    if size not in measurements.slots:
        num = measured_slots(dynamics, hyper, most, measurements.judge("reverse"))
        measurements.slots[size] = int(-ranks.highest([-num])[0])  # all go the same way
    return min(most, measurements.slots[size])


def measured_slots(dynamics: Dynamics, hyper: Hyper, most: int, judge: Judge) -> int:
    """Measures how many slots there is room for, beside one step of the sweep and one chunk of the objective.

    Both are tried once at s_0; a fifth is added for steps that take more, and a tenth of the memory is left free.

    Args:
        dynamics: of the run.
        hyper: lambda.
        most: the largest number to return.
        judge: says how the gradient is differentiated.
    """
    problem, device = dynamics.problem, dynamics.like.device

    def step() -> None:
        adjoint = tree_map(torch.ones_like, dynamics.start)
        at_0 = step_gradient(dynamics, dynamics.loss_at(0), 0, dynamics.start, dynamics.hyper_at(hyper, 0), judge)
        adjoint_step(dynamics, at_0, adjoint)

    def objective() -> None:
        params = dynamics.layout.unpack(dynamics.result(dynamics.start))
        outer_objective(problem.on_outer_chunk(0), params, hyper)

    taken = max(taken_by(step, device), taken_by(objective, device))
    room = 0.9 * available_bytes(device) - 1.2 * taken
    return max(1, min(most, int(room / max(1, state_bytes(dynamics.start)))))
