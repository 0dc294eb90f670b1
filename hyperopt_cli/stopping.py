"""Places where a run may end: nothing is half done there, and nothing is lost that has not been kept.

After an inner step there is something to keep, and whoever keeps it ends the run once it is kept
(`modes/account.py` asks after each step, `commands/keeping.py` raises). Between two
trials, two engines, two chunks of a data set there is not: the run may just end.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


def _goes_on() -> None:
    pass


_end_if_asked: ContextVar[Callable[[], None]] = ContextVar("end_if_asked", default=_goes_on)


@contextmanager
def stopped_by(end_if_asked: Callable[[], None]) -> Iterator[None]:
    """Inside, `may_stop` calls `end_if_asked`, which raises where the run is to end."""
    token = _end_if_asked.set(end_if_asked)
    try:
        yield
    finally:
        _end_if_asked.reset(token)


@contextmanager
def only_after_steps() -> Iterator[None]:
    """Inside, `may_stop` does nothing: several processes that share a run end together, after a step."""
    with stopped_by(_goes_on):
        yield


def may_stop() -> None:
    """Ends the run here if it was asked to end.

    Raises:
        Stopped: it was asked to.
    """
    _end_if_asked.get()()


def stoppable(items: Iterable[T]) -> Iterator[T]:
    """Yields the items; before each of them the run may end."""
    for item in items:
        may_stop()
        yield item
