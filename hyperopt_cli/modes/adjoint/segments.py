"""The backward sweep in segments, where a step can keep what its backward takes (`program/partition.py`).

The run keeps s_t at the beginning of each segment, and of the last segment everything, so that its steps are not
taken again. Every other segment is taken once more from its beginning, this time keeping everything. With segments of
c steps, of which each keeps k states' worth,

    steps: 2 T - c          memory, in states: about T / c - 1 + k c

A state at which a step begins that is kept whole is held by it already: some of them are marked, about sqrt(c) steps
apart, at no cost. Another process that goes on from here has none of what steps keep, and takes a few of them again
from the mark before; so it comes further however soon it is interrupted in its turn.

Where the adjoint of a step can only be had from s_t itself, fewer states can be traded for more steps (`binomial.py`);
here the gradient of a step is never taken a third time. Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 3.1
and algorithm 1, with the last segment kept.
"""

from collections.abc import Callable, Iterator, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.sweep import Backward, PastStates, Steps


def segment_length(num: int, slots: int, kept: float) -> int | None:
    """Returns the longest segment for which `slots` states' worth of memory suffices; None: no length does.

    Args:
        num: steps that are met again.
        slots: states that may be held.
        kept: what a step keeps, in states.

    >>> segment_length(100, 70, 1.35)
    50
    """
    fitting = (c for c in range(num, 0, -1) if -(-num // c) - 1 + kept * c <= slots)
    return next(fitting, None)


class Segments(PastStates):
    """The run, and the sweep back through its last `num` steps.

    Args:
        steps: compiled.
        account: records every step.
        num: steps that are met again.
        length: of a segment.
        slots: states' worth that may be held.
    """

    def __init__(self, steps: Steps, account: Account, num: int, length: int, slots: int) -> None:
        self._steps, self._account, self.slots = steps, account, slots
        self._total = steps.dynamics.problem.steps
        self._first, self._apart = self._total - num, max(1, isqrt(length))
        self._starts = {max(self._first, self._total - k * length) for k in range(1, -(-num // length) + 1)}
        self._held: dict[int, State] = {}  # s_t where a segment begins, and at marks, as far as they are not behind
        self._t, self._state = 0, steps.dynamics.start  # in hand, where steps are being taken
        self._until = self._total  # in the backward sweep: alpha_until is known
        self._backwards: list[tuple[int, Backward]] = []
        self._is_forward = True

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` stood; steps that have to be taken again for that are not counted again."""
        device = self._steps.dynamics.like.device
        self._held = {t: State.from_state_dict(each, device) for t, each in state["held"]}
        self._until = state["until"]
        self._account.counts.add_steps(-state["counted"])
        if state["is_forward"]:
            self._t = max(self._held)
            self._state = self._held[self._t]

    def state_dict(self) -> dict[str, Any]:
        """Returns the states that are held, the one in hand among them; what steps have kept for backward is lost."""
        in_hand = self._is_forward or self._t < self._until
        states = self._held | ({self._t: self._state} if in_hand else {})
        held = ([t, state.state_dict()] for t, state in states.items())
        return {"held": held, "until": self._until, "counted": len(self._backwards), "is_forward": self._is_forward}

    def forward(self, save: Callable[[], None]) -> State:
        """Runs the training to s_T, keeping s_t where a segment begins and everything of the last segment."""
        while self._t < self._total:
            value = self._taken(is_kept=self._t >= max(self._starts))
            self._account.step_done(self._t - 1, value)
            save()
        return self._state

    def backward(self, save: Callable[[], None]) -> Iterator[tuple[int, Backward]]:
        """Yields the last `num` steps, the last one first; a segment that kept no graph is run once more before."""
        self._is_forward = False
        self._held.pop(self._total, None)
        while self._until > self._first:
            if not self._backwards:
                self._take_again(save)
            self._state = self._steps.dynamics.start  # s_until is needed no longer
            self._until, backward = self._backwards.pop()
            self._held.pop(self._until, None)
            yield self._until, backward
            del backward

    def _take_again(self, save: Callable[[], None]) -> None:
        """Takes the steps up to `until` again, from the last state before it that is held."""
        self._t = max(self._held)
        self._state = self._held[self._t]
        while self._t < self._until:
            self._taken(is_kept=True)
            self._account.progress.step_repeated()
            if self._t < self._until:
                save()

    def _taken(self, is_kept: bool) -> Tensor:
        """Takes s_t to s_{t+1}, for the first time or again, and returns L."""
        t, state = self._t, self._state
        if t in self._starts or (is_kept and t % self._apart == 0):
            self._held[t] = state
        if is_kept:
            (self._state, value), backward = self._steps.forward_and_backward(t, state, self._account)
            self._backwards.append((t, backward))
        else:
            self._state, value = self._steps.train(t, state, self._account)
        self._t = t + 1
        return value
