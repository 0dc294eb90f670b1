"""What a computation decides: every comparison, argmax, sort and rounding on its way.

A function is smooth between two points where all of these come out alike at both. An operator with a kink decides
inside of its kernel: which side each element lies on is read off its arguments.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


def _above(x: Tensor, *rest: Any) -> list[Tensor]:
    return [x > 0]


def _between(x: Tensor, low: Any = None, high: Any = None, *rest: Any) -> list[Tensor]:
    return [x > bound for bound in (low, high) if bound is not None]


def _larger(x: Tensor, y: Tensor, *rest: Any) -> list[Tensor]:
    return [x > y]


def _close(x: Tensor, y: Tensor, reduction: int = 1, width: float = 1.0) -> list[Tensor]:
    return [(x - y).abs() < width, x > y]


def _shrunk(x: Tensor, width: float = 0.5) -> list[Tensor]:
    return [x > width, x < -width]


def _extreme(largest: bool) -> Callable[..., list[Tensor]]:
    def which(x: Tensor, dim: Any = (), keepdim: bool = False) -> list[Tensor]:
        reduced = torch.amax if largest else torch.amin
        return [x == reduced(x, dim if dim != () else tuple(range(x.ndim)), keepdim=True)]

    return which


# By the operator's name without a trailing underscore: its arguments -> which side each element lies on.
SIDES: dict[str, Callable[..., list[Tensor]]] = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "_prelu_kernel", "abs", "sgn", "sign", "celu", "heaviside"), _above),
    **dict.fromkeys(("hardtanh", "clamp"), _between),
    "clamp_min": lambda x, low, *rest: _between(x, low),
    "clamp_max": lambda x, high, *rest: _between(x, None, high),
    "threshold": lambda x, at, *rest: [x > at],
    "threshold_backward": lambda grad, x, at, *rest: [x > at],
    **dict.fromkeys(("hardsigmoid", "hardswish"), lambda x, *rest: _between(x, -3, 3)),
    **dict.fromkeys(("softshrink", "hardshrink"), _shrunk),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _larger),
    **dict.fromkeys(("smooth_l1_loss", "huber_loss"), _close),
    "amax": _extreme(True),
    "amin": _extreme(False),
    "max": _extreme(True),
    "min": _extreme(False),
}
ROUNDED = frozenset({"round", "floor", "ceil", "trunc", "fix"})


class Decisions(TorchDispatchMode):
    """Keeps the decisions of what runs inside; given those of another run, compares instead.

    Attributes:
        taken: in their order.
        differ: whether any differs from the other's.
    """

    def __init__(self, other: "Decisions | None" = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taken: list[Tensor] = []
        self.differ = False
        self._other, self._num = other, 0

    @property
    def same(self) -> bool:
        """Whether all decisions are those of the other run, none more and none less."""
        return not self.differ and self._other is not None and self._num == len(self._other.taken)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operator, and keeps or compares what it decides."""
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1].removesuffix("_")
        if name in SIDES and args and isinstance(args[0], Tensor) and not args[0].is_complex():
            self._decided(SIDES[name](*args, **kwargs) if args[0].is_floating_point() else [])
        out = func(*args, **kwargs)
        if name in ROUNDED:
            self._decided([x for x in tree_leaves(out) if isinstance(x, Tensor)])
        elif any(x.is_floating_point() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
            whole = [x for x in tree_leaves(out) if isinstance(x, Tensor) and not _is_continuous(x)]
            self._decided(whole)
        return out

    def _decided(self, what: list[Tensor]) -> None:
        for x in what:
            if self._other is None:
                self.taken.append(x.clone())
            elif not self.differ:
                at, self._num = self._num, self._num + 1
                known = self._other.taken[at] if at < len(self._other.taken) else None
                self.differ = known is None or known.shape != x.shape or not torch.equal(known, x)


def _is_continuous(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
