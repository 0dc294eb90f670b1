"""The elementwise passes of exact arithmetic, as torch runs them or compiled.

Compiled, each pass reads and writes its tensors once. The increment is a pass of its own, so that one and the same
machine code computes it there and back: fused with what follows, the two directions could round it differently.
"""

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.compiling import cannot_compile
from hyperopt_cli.optimizers import exact
from hyperopt_cli.optimizers.base import Coupling

REPAYS = 5e8  # parameters times steps: at some 40 ns saved by each, more than compiling takes (4 to 12 s seen)


class Kernels(NamedTuple):
    """The passes.

    Attributes:
        multiply: of `exact`.
        divide: of `exact`.
        add: X + H and the largest size in it, float64 [].
        decode: of `exact`.
        increment: as `increment` below.
    """

    multiply: exact.Kernel
    divide: exact.Kernel
    add: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor, exact.Radix, torch.dtype], Tensor]
    increment: Callable[..., tuple[Tensor, Tensor]]


def add(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """X + H and its largest size."""
    landed = x + h
    low, high = landed.aminmax()
    return landed, torch.maximum(-low.double(), high.double())


def increment(
    coupling: Coupling,
    radixes: dict[str, exact.Radix],
    others: dict[str, Tensor],
    d: Tensor,
    arguments: SimpleNamespace,
) -> tuple[Tensor, Tensor]:
    """h as an integer, and its largest size, NaN if h is anywhere."""
    x = {part: exact.decode(held, radixes[part], d.dtype) for part, held in others.items()}
    h = coupling.increment(x, d, arguments).double() / exact.unit(radixes[coupling.name])
    return h.round().to(torch.int64), h.abs().amax()


EAGER = Kernels(exact.multiply, exact.divide, add, exact.decode, increment)


def compiled() -> Kernels:
    """The passes compiled, each for its shapes on first use."""

    def elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *others: Any) -> Any:
            shapes = tuple(other.shape if isinstance(other, Tensor) else other for other in others)
            return _compiled(function, (x.shape, x.device, shapes))(x, *others)

        return call

    multiply, divide = elementwise(exact.multiply), elementwise(exact.divide)
    return Kernels(multiply, divide, elementwise(add), elementwise(exact.decode), _compiled_increment)


def choose(compile: bool | str, size: int) -> Kernels:
    """The passes for a run of `size` parameters times steps.

    Raises:
        UsageError: compiling was asked for and cannot be done here.
    """
    if compile is False or (compile == "auto" and size < REPAYS):
        return EAGER
    reason = cannot_compile()
    if reason is None:
        return compiled()
    if compile is True:
        raise UsageError(
            f"compile: torch cannot compile here ({reason}); install a C++ compiler, or set compile: false"
        )
    return EAGER


def _compiled_increment(
    coupling: Coupling,
    radixes: dict[str, exact.Radix],
    others: dict[str, Tensor],
    d: Tensor,
    arguments: SimpleNamespace,
) -> tuple[Tensor, Tensor]:
    # numbers become tensors: a number would be compiled in, and compiled again at the next step
    numbers = vars(arguments).items()
    a = {name: x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for name, x in numbers}
    fixed = tuple((part, radix) for part, radix in radixes.items() if isinstance(radix, int))
    own = {part: radix for part, radix in radixes.items() if isinstance(radix, Tensor)}
    key = tuple((x.shape, x.dtype, x.device) for x in (d, *others.values(), *a.values()))
    kernel = _compiled_for(coupling.increment, coupling.name, fixed, (*key, *own))
    out: tuple[Tensor, Tensor] = kernel(others, d, a, own)
    return out


@lru_cache(maxsize=256)
def _compiled_for(function: Any, name: str, fixed: tuple[tuple[str, int], ...], key: object) -> Callable[..., Any]:
    coupling = Coupling(name, function)

    def kernel(
        others: dict[str, Tensor], d: Tensor, a: dict[str, Tensor], own: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return increment(coupling, {**dict(fixed), **own}, others, d, SimpleNamespace(**a))

    return _compiled(kernel, key)


@lru_cache(maxsize=256)
def _compiled(function: Callable[..., Any], key: object) -> Callable[..., Any]:
    """`function` compiled for one set of shapes. A code object of its own: torch counts recompilations by it."""
    assert isinstance(function, FunctionType)
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    made: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False)
    return made
