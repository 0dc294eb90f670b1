"""The way back in segments, where a step can keep what its way back takes (`compiling/halves.py`).

The run keeps s_t at the beginning of each segment, and of the last segment everything, so that its steps are not
taken again. Every other segment is taken once more from its beginning, this time keeping everything. With segments of
c steps, of which each keeps k states' worth,

    steps: 2 T - c          memory, in states: about T / c - 1 + k c

Where the adjoint of a step can only be had from s_t itself, fewer states can be traded for more steps (`binomial.py`);
here the gradient of a step is never taken a third time. Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 3.1
and algorithm 1, with the last segment kept.
"""

from collections.abc import Iterator
from itertools import pairwise

from hyperopt_cli.modes.base import Account
from hyperopt_cli.modes.dynamics import State
from hyperopt_cli.modes.sweep import Back, Steps, told_of


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


def in_segments(steps: Steps, account: Account, num: int, length: int) -> tuple[State, Iterator[tuple[int, Back]]]:
    """s_T, and the way back through the last `num` steps, the last one first."""
    total = steps.dynamics.problem.steps
    starts = sorted({max(total - num, total - k * length) for k in range(1, -(-num // length) + 1)})
    held: dict[int, State] = {}
    backs: list[tuple[int, Back]] = []
    state = steps.dynamics.start
    for t in range(total):
        if t in starts[:-1]:
            held[t] = state
        if t < starts[-1]:
            state, value = steps.train(t, state, account)
        else:
            (state, value), back = steps.kept(t, state, account)
            backs.append((t, back))
        told_of(t, value, total, account)
    return state, _met_again(steps, account, starts, held, backs)


def _met_again(
    steps: Steps, account: Account, starts: list[int], held: dict[int, State], backs: list[tuple[int, Back]]
) -> Iterator[tuple[int, Back]]:
    while backs:
        yield backs.pop()
    for start, end in reversed(list(pairwise(starts))):
        state = held.pop(start)
        for t in range(start, end):
            (state, _), back = steps.kept(t, state, account)
            backs.append((t, back))
            account.step_repeated()
            del back
        del state
        while backs:
            yield backs.pop()
