"""The elementwise passes of exact arithmetic, as torch runs them or compiled.

Compiled, each pass reads and writes its tensors once. The increment is a pass of its own, so that one and the same
machine code computes it forward and backward: fused with what follows, the two directions could round it differently.
Each is compared with the same pass as torch runs it, once for each set of shapes: a wrong increment would be undone as
well.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.optimizers import exact
from hyperopt_cli.optimizers.base import Arguments, Coupling, as_arguments
from hyperopt_cli.program import cannot_compile
from hyperopt_cli.program.comparing import AGREES
from hyperopt_cli.program.failures import named_as_of_compiling

REPAYS = 5e8  # parameters times steps: at some 40 ns saved by each, more than compiling takes (4 to 12 s seen)


class Kernels(NamedTuple):
    """The elementwise passes of exact arithmetic, compiled or as torch runs them.

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
    """Returns X + H, int64, and the largest size in it, float64 []."""
    landed = x + h
    low, high = landed.aminmax()
    return landed, torch.maximum(-low.double(), high.double())


def increment(
    coupling: Coupling,
    radixes: dict[str, exact.Radix],
    others: dict[str, Tensor],
    d: Tensor,
    arguments: Arguments,
) -> tuple[Tensor, Tensor]:
    """Evaluates h of a coupling as an integer.

    Args:
        coupling: whose increment it is.
        radixes: bits after the binary point, by what the state holds.
        others: what the increment reads, as integers, int64.
        d: the gradient, driven.
        arguments: of the rule, for this parameter.

    Returns:
        round(2^radix h), int64, and the largest |2^radix h| [], NaN if h is anywhere.
    """
    x = {part: exact.decode(held, radixes[part], d.dtype) for part, held in others.items()}
    h = coupling.increment(x, d, arguments).double() / exact.unit(radixes[coupling.name])
    return h.round().to(torch.int64), h.abs().amax()


EAGER = Kernels(exact.multiply, exact.divide, add, exact.decode, increment)


def compiled() -> Kernels:
    """Returns the passes compiled, each at its first call for its shapes."""

    def elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *others: Any) -> Any:
            shapes = tuple(other.shape if isinstance(other, Tensor) else other for other in others)
            with named_as_of_compiling(f"the compiled pass {function.__name__}"):
                return _compiled(function, (x.shape, x.device, shapes))(x, *others)

        return call

    multiply, divide = elementwise(exact.multiply), elementwise(exact.divide)
    return Kernels(multiply, divide, elementwise(add), elementwise(exact.decode), _compiled_increment)


def choose(compile: bool | str, size: int) -> Kernels:
    """Chooses the passes for a run of `size` parameters times steps.

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
    arguments: Arguments,
) -> tuple[Tensor, Tensor]:
    with named_as_of_compiling(f"the compiled increment of {coupling.name}"):
        # numbers become tensors: a number would be compiled in, and compiled again at the next step
        given = arguments._asdict()
        a = as_arguments({name: torch.as_tensor(x, dtype=_dtype(x)) for name, x in given.items()})
        fixed = tuple((part, radix) for part, radix in radixes.items() if isinstance(radix, int))
        own = {part: radix for part, radix in radixes.items() if isinstance(radix, Tensor)}
        key = tuple((x.shape, x.dtype, x.device) for x in (d, *others.values(), *a._asdict().values()))
        kernel = _compiled_for(coupling.increment, coupling.name, fixed, d.dtype, (*key, *a._asdict(), *own))
        out: tuple[Tensor, Tensor] = kernel(others, d, a, own)
        return out


def _dtype(x: Tensor | float) -> torch.dtype:
    return x.dtype if isinstance(x, Tensor) else torch.float64


class _Compiled:
    """A function compiled for one set of shapes, and compared with itself as torch runs it at the first call.

    Args:
        function: returns a tensor or a tuple of them. It gets a code object of its own: torch counts recompilations by
            it.
        differing: by what the compiled results differ from those of torch, in words; None: they agree.
    """

    def __init__(
        self, function: Callable[..., Any], differing: Callable[[list[Tensor], list[Tensor]], str | None]
    ) -> None:
        assert isinstance(function, FunctionType)
        code, closure = function.__code__.replace(), function.__closure__
        own = FunctionType(code, function.__globals__, function.__name__, None, closure)
        self._function, self._differing, self._compared = function, differing, False
        self._run: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False)

    def __call__(self, *given: Any) -> Any:
        out = self._run(*given)
        if not self._compared:
            if (difference := self._differing(_flat(out), _flat(self._function(*given)))) is not None:
                raise VerificationError(
                    f"compile: a compiled pass of the exact arithmetic ({self._function.__name__}) differs from the "
                    f"same pass as torch runs it{difference}; set compile: false"
                )
            self._compared = True
        return out


def _flat(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def _in_bits(made: list[Tensor], wanted: list[Tensor]) -> str | None:
    return None if all(map(torch.equal, made, wanted)) else " in its bits"


def _by_more_than_rounding(dtype: torch.dtype, made: list[Tensor], wanted: list[Tensor]) -> str | None:
    """Of increments, which are integers: what they were computed from is of `dtype`."""
    (x, _), (y, size) = made, wanted
    difference, norm = (float(torch.linalg.vector_norm(h)) for h in (x.double() - y.double(), y.double()))
    if not bool(size.isfinite()) or difference <= AGREES[dtype] * norm + 2 * x.numel() ** 0.5:
        return None
    return f" by {difference:.1e}, of {norm:.1e} units"


@lru_cache(maxsize=256)
def _compiled_for(
    function: Any, name: str, fixed: tuple[tuple[str, int], ...], dtype: torch.dtype, key: object
) -> Callable[..., Any]:
    coupling = Coupling(name, function)

    def of_increment(
        others: dict[str, Tensor], d: Tensor, a: Arguments, own: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return increment(coupling, {**dict(fixed), **own}, others, d, a)

    return _Compiled(of_increment, partial(_by_more_than_rounding, dtype))


@lru_cache(maxsize=256)
def _compiled(function: Callable[..., Any], key: object) -> Callable[..., Any]:
    """`function` compiled for one set of shapes."""
    return _Compiled(function, _in_bits)
