"""Something that stands in for a number, to see whether anybody reads it.

That a list of operators is the same at two numbers says nothing of a third: a loss may change with the tenth epoch. If
it comes about with nothing there that could be read, it is the same at all of them.

The stand-in is a number of the same kind and of another value, whose methods raise. What reads it in Python (a
comparison, a sum, a look-up) fails; what reads it in C (an index, a factor of a tensor) comes to other operators. That
leaves a generator's seed: who draws at random is refused for that.
"""

from typing import Any, NoReturn

# what every object needs to be made, looked up and thrown away
_OF_OBJECTS = {
    "__new__", "__init__", "__init_subclass__", "__subclasshook__", "__class__", "__getattribute__", "__setattr__",
    "__delattr__", "__dir__", "__doc__", "__sizeof__", "__reduce__", "__reduce_ex__", "__getnewargs__",
    "__getstate__", "__dict__", "__module__", "__weakref__",
}  # fmt: skip


def unreadable(number: int | float | str) -> Any:
    """Returns a stand-in for `number`: of its kind and another value, with methods that raise `ReadError`."""
    other: Any = f"{number}'" if isinstance(number, str) else number + 1
    return next(kind for of, kind in _KINDS.items() if isinstance(number, of))(other)


class ReadError(TypeError):
    """Python has read the stand-in of a number."""


def is_by_reading(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from or while handling, is that something unreadable was read."""
    return error is not None and (isinstance(error, ReadError) or is_by_reading(error.__cause__ or error.__context__))


def _read(self: Any, *arguments: Any, **named: Any) -> NoReturn:
    raise ReadError("a number of the batch is read")


def _kind(of: type) -> type:
    names = {name for name in dir(of) if callable(getattr(of, name))} - _OF_OBJECTS
    return type(f"Unreadable_{of.__name__}", (of,), dict.fromkeys(names, _read))


_KINDS = {of: _kind(of) for of in (int, float, str)}
