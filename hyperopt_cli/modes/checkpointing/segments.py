"""The way back in segments, where a step can keep what its way back takes (`compiling/halves.py`).

The run keeps s_t at the beginning of each segment, and of the last segment everything, so that its steps are not
taken again. Every other segment is taken once more from its beginning, this time keeping everything. With segments of
c steps, of which each keeps k states' worth,

    steps: 2 T - c          memory, in states: about T / c - 1 + k c

Where the adjoint of a step can only be had from s_t itself, fewer states can be traded for more steps (`binomial.py`);
here the gradient of a step is never taken a third time. Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 3.1
and algorithm 1, with the last segment kept.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hyperopt_cli.modes.base import Account
from hyperopt_cli.modes.dynamics import State
from hyperopt_cli.modes.sweep import Back, Steps, WayBack, told_of


def segment_length(num: int, slots: int, kept: float) -> int | None:
    """The longest segment for which `slots` states' worth of memory suffices; None where no length does.

    Args:
        num: steps that are met again.
        slots: states that may be held.
        kept: what a step keeps, in states.

    >>> segment_length(100, 70, 1.35)
    50
    """
    fitting = (c for c in range(num, 0, -1) if -(-num // c) - 1 + kept * c <= slots)
    return next(fitting, None)


class Segments(WayBack):
    """The run, and the way back through its last `num` steps.

    Args:
        steps: compiled.
        account: told of every step.
        num: steps that are met again.
        length: of a segment.
        slots: states' worth that may be held.
    """

    def __init__(self, steps: Steps, account: Account, num: int, length: int, slots: int) -> None:
        self._steps, self._account, self.slots = steps, account, slots
        self._total = steps.dynamics.problem.steps
        first = self._total - num
        self._starts = sorted({max(first, self._total - k * length) for k in range(1, -(-num // length) + 1)})
        self._held: dict[int, State] = {}  # s_t at the beginning of each segment that is not yet met again
        self._t, self._state = 0, steps.dynamics.start  # in hand; on the way back, the beginning of a segment
        self._running, self._until = True, self._total  # on the way back: alpha_until is known
        self._backs: list[tuple[int, Back]] = []

    def found(self, place: Mapping[str, Any]) -> None:
        """Goes on from where `place` stood; steps that have to be taken again for that are not counted again."""
        device = self._steps.dynamics.like.device
        self._held = {t: State.found(state, device) for t, state in place["held"]}
        self._t, self._state = place["t"], State.found(place["state"], device)
        self._running, self._until = place["running"], place["until"]
        self._account.uncount(place["counted"])
        if not self._running:
            self._take_again(self._until)

    def place(self) -> dict[str, Any]:
        """Where it can begin anew: at s_t, or at the beginning of the segment that is kept whole."""
        held, t, state = self._held, self._t, self._state
        if self._running and t > self._starts[-1]:
            t, state = self._starts[-1], held[self._starts[-1]]
        counted = self._t - t if self._running else min(len(self._backs), self._until - t)
        return {
            "held": [[start, s.kept()] for start, s in held.items()],
            "t": t,
            "state": state.kept(),
            "running": self._running,
            "until": self._until,
            "counted": counted,
        }

    def end(self) -> State:
        """The run: s_T."""
        while self._t < self._total:
            t, state = self._t, self._state
            if t in self._starts:
                self._held[t] = state
            if t < self._starts[-1]:
                state, value = self._steps.train(t, state, self._account)
            else:
                (state, value), back = self._steps.kept(t, state, self._account)
                self._backs.append((t, back))
            self._t, self._state = t + 1, state
            told_of(t, value, self._total, self._account)
            self._account.offer(self.left)
        end, self._running = self._state, False
        self._t, self._state = self._starts[-1], self._held.pop(self._starts[-1])
        return end

    def __iter__(self) -> Iterator[tuple[int, Back]]:
        """The last step first."""
        while True:
            while self._backs:
                pair = self._backs.pop()
                self._until = pair[0]
                yield pair
                del pair
            if not self._held:
                return
            self._t, to = max(self._held), self._t
            self._state = self._held.pop(self._t)
            self._take_again(to)

    def _take_again(self, to: int) -> None:
        state = self._state
        for t in range(self._t, to):
            (state, _), back = self._steps.kept(t, state, self._account)
            self._backs.append((t, back))
            del back
            self._account.step_repeated()
            if t + 1 < to:
                self._account.offer(self.left)
