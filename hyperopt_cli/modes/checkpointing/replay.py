"""The states of a run on the way back, from few that are kept: the schedule of `binomial.py`, carried out."""

from collections.abc import Callable, Iterator

from hyperopt_cli.modes.checkpointing.binomial import Advance, Keep, Take, Visit, schedule
from hyperopt_cli.modes.checkpointing.shelf import Shelf
from hyperopt_cli.modes.dynamics import State


def replayed(
    first: Iterator[State], steps: int, num: int, slots: int, shelf: Shelf, step: Callable[[int, State], State]
) -> Iterator[tuple[int, State]]:
    """(T, s_T), then the last `num` states before it, the last one first.

    Args:
        first: the run itself: s_0, s_1, ..., s_T.
        steps: T.
        num: how many are wanted; the run's first T - num steps are taken once and kept nowhere.
        slots: how many states the shelf may hold at once.
        shelf: where they lie.
        step: `(t, s_t) -> s_{t+1}`, again.
    """
    begin, running = steps - num, True
    state = next(first)
    for _ in range(begin):
        state = next(first)
    for action in schedule(num, slots):
        match action:
            case Keep():
                shelf.push(state)
            case Advance(at, to):
                for t in range(at, to):
                    state = next(first) if running else step(begin + t, state)
            case Visit(at):
                if running:
                    (end,), running = first, False
                    yield steps, end
                    del end
                shelf.ahead()
                yield begin + at, state
                del state  # before what is taken next
            case Take(_, last):
                state = shelf.top()
                if last:
                    shelf.drop()
