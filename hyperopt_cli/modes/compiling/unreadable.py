"""Something that stands in for a number, to see whether anybody reads it.

That a list of operators is the same at two numbers says nothing of a third: a loss may change with the tenth epoch. If
it comes about with nothing there that could be read, it is the same at all of them.
"""

from typing import Any, NoReturn


class Unreadable:
    """Raises at whatever is asked of it; only `is` and `isinstance` get an answer."""

    def _read(self, *arguments: Any) -> NoReturn:
        raise TypeError("a number of the batch is read")

    # what every object answers; it has no other methods
    __eq__ = __ne__ = __hash__ = __bool__ = __repr__ = __str__ = __format__ = _read


UNREADABLE = Unreadable()
