"""What is written in float32 or below, computed in float64: parameters, batch, loss and the constants that it meets."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.program.aliases import is_view, written_arguments

HIGHER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


_RAISING = ContextVar("raising", default=False)


class Met(TorchFunctionMode):
    """Inside, numbers are raised where a function of torch refuses a mixture before it asks the dispatcher (conv2d)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, with arguments in float64 where it takes no others."""
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            given = {x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            if not (given & set(HIGHER) and given & set(HIGHER.values())):
                raise
        args, kwargs = tree_map(raised_number, (args, kwargs))
        return func(*args, **kwargs)


def meets_higher(*trees: Any) -> bool:
    """Returns whether a number in float64 is among the leaves of the trees."""
    return any(isinstance(x, Tensor) and x.dtype in HIGHER.values() for x in tree_leaves(trees))


class Raised(TorchDispatchMode):
    """Inside, an operator that meets a number in float64 is computed in it, and no cast lowers it.

    Autocast's casts are among those that are left out, so that what a model computes in bfloat16 is float64 too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._met = Met()

    def __enter__(self) -> "Raised":
        """Begins: functions of torch that refuse a mixture, and what a batch holds, are in float64 too."""
        self._token = _RAISING.set(True)
        self._met.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *of_error: Any) -> None:
        """Ends everything that `__enter__` began."""
        _RAISING.reset(self._token)
        super().__exit__(*of_error)  # type: ignore[no-untyped-call]
        self._met.__exit__(*of_error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operator, in float64 where it meets a number in float64."""
        args, kwargs = tree_map(solid, (args, kwargs or {}))
        if meets_higher(args, kwargs):
            args, kwargs = tree_map(raised_number, (args, kwargs))
        elif "dtype" in kwargs:
            kwargs = {**kwargs, "dtype": raised_number(kwargs["dtype"])}
        out = func(*args, **kwargs)
        if is_view(func) or written_arguments(func):
            return out
        return tree_map(raised_number, out)


def solid(x: Any) -> Any:
    """Gives memory to zeros without it (tangents of a constant): below a mode torch reads what is not there."""
    return torch.zeros_like(x) if isinstance(x, Tensor) and x._is_zerotensor() else x


def raised_number(x: Any) -> Any:
    """Returns a plain tensor, or a dtype, in float64; anything else as it is."""
    if isinstance(x, torch.dtype):
        return HIGHER.get(x, x)
    return x.to(HIGHER[x.dtype]) if type(x) in (Tensor, Parameter) and x.dtype in HIGHER else x


def is_raising() -> bool:
    """Returns whether numbers are to be in float64 now."""
    return _RAISING.get()


@contextmanager
def raising() -> Iterator[None]:
    """Inside, tensors of a class that no mode of the dispatcher reaches are in float64 too; without autocast."""
    token, autocast = _RAISING.set(True), torch.autocast
    entered = autocast.__enter__, autocast.__exit__
    autocast.__enter__, autocast.__exit__ = lambda self: self, lambda self, *of_error: None  # type: ignore[method-assign]
    try:
        with Met():
            yield
    finally:
        autocast.__enter__, autocast.__exit__ = entered  # type: ignore[method-assign]
        _RAISING.reset(token)


def raised(tree: Any) -> Any:
    """Returns a tree of tensors in float64."""
    return tree_map(lambda x: x.to(HIGHER.get(x.dtype, x.dtype)) if isinstance(x, Tensor) else x, tree)


def as_due(tree: Any) -> Any:
    """Returns a batch as the loss is to see it now."""
    return raised(tree) if is_raising() else tree
