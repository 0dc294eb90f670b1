"""Binomial checkpointing: the states of a run, last first, with few of them kept and the least recomputation.

Synonyms: revolve, treeverse, optimal online/offline checkpointing.

With `s` slots, one of which holds the state that the run starts from, the steps taken to visit s_{T-1} ... s_0 obey

    E(l, s) = min over m of  m + E(l - m, s - 1) + E(m, s),      E(l, 1) = l (l - 1) / 2,      E(1, s) = 0

(go m steps ahead, keep the state there, treat what lies behind it with one slot less, then the m steps with all), whose
solution is

    E(T, s) = r T - C(s + r, s + 1),      r the smallest with C(s + r, s) >= T.

r is how often the step that is taken most is taken. One more step reaches s_T. The state in hand takes no slot.

Griewank and Walther 2000, Algorithm 799, https://doi.org/10.1145/347837.347846; the choice of m follows
from E being piecewise linear in l, with the slope r between C(s + r - 1, s) and C(s + r, s).
"""

from collections.abc import Iterator
from math import comb
from typing import NamedTuple


class Keep(NamedTuple):
    """Put the state in hand, s_at, into the next slot."""

    at: int


class Advance(NamedTuple):
    """Take the steps from the state in hand, s_at, to s_to."""

    at: int
    to: int


class Visit(NamedTuple):
    """The state in hand is s_at: it is wanted now."""

    at: int


class Take(NamedTuple):
    """Take the state s_at in hand, which the slot filled last holds; `last`: empty that slot."""

    at: int
    last: bool


Action = Keep | Advance | Visit | Take


def num_forward_steps(steps: int, slots: int) -> int:
    """Counts the steps of training that are taken in all, s_T included.

    Args:
        steps: T.
        slots: s, at least 1.

    >>> num_forward_steps(10, 3), num_forward_steps(1000, 50), num_forward_steps(1000, 1000)
    (16, 1949, 1000)
    """
    r = _repetitions(steps, slots)
    return r * steps - comb(slots + r, slots + 1) + 1


def schedule(steps: int, slots: int) -> Iterator[Action]:
    """Yields what to do, with s_0 in hand, to visit s_{T-1}, ..., s_0.

    A visit is followed by taking what the slot filled last holds, or by the end. The first steps up to s_{T-1} are
    the run itself: each of them is taken once before the first visit.

    Args:
        steps: T, at least 1.
        slots: s, at least 1; slots are filled and emptied like a stack.

    >>> [str(type(action).__name__) + str(tuple(map(int, action))) for action in schedule(2, 1)]
    ['Keep(0,)', 'Advance(0, 1)', 'Visit(1,)', 'Take(0, 1)', 'Visit(0,)']
    """
    kept: list[int] = []
    at, end = 0, steps  # s_at is in hand; s_end and all later ones have been visited
    while True:
        while end - at > 1:
            if not kept or kept[-1] != at:
                kept.append(at)
                yield Keep(at)
            to = at + _split(end - at, slots - len(kept) + 1)
            yield Advance(at, to)
            at = to
        yield Visit(at)
        end = at
        if not kept:
            return
        at, last = kept[-1], end - kept[-1] == 1
        if last:
            kept.pop()
        yield Take(at, last)


def _repetitions(steps: int, slots: int) -> int:
    """r: the smallest number with C(s + r, s) >= T."""
    low, high = 0, 1  # C(s + low, s) < T <= C(s + high, s), or T = 1
    while comb(slots + high, slots) < steps:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if comb(slots + middle, slots) < steps:
            low = middle
        else:
            high = middle
    return high


def _split(steps: int, slots: int) -> int:
    """m, the steps ahead at which the next state is kept.

    Both parts are to lie where a step of theirs costs as much as one of the whole: m between C(s + r - 2, s) and
    C(s + r - 1, s), l - m between C(s + r - 2, s - 1) and C(s + r - 1, s - 1). Of these the smallest m is taken: it
    fills and reads the slots at the bottom of the stack, which may lie far away, about half as often as the largest.
    """
    r = _repetitions(steps, slots)
    return max(1, comb(slots + r - 2, slots), steps - comb(slots + r - 1, slots - 1))
