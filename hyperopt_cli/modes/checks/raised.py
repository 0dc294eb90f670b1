"""What is written in float32 or below, computed in float64: parameters, batch, loss and the constants that it meets."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.modes.program.aliases import is_view, written_arguments

HIGHER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


class Raised(TorchDispatchMode):
    """Inside, an operator that meets a number in float64 is computed in it, and no cast lowers it.

    Autocast's casts are among those that are left out, so that what a model computes in bfloat16 is float64 too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator, in float64."""
        kwargs = kwargs or {}
        if any(isinstance(x, Tensor) and x.dtype in HIGHER.values() for x in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(_raised, (args, kwargs))
        out = func(*args, **kwargs)
        if is_view(func) or written_arguments(func):
            return out
        return tree_map(_raised, out)


def _raised(x: Any) -> Any:
    if isinstance(x, torch.dtype):
        return HIGHER.get(x, x)
    return x.to(HIGHER[x.dtype]) if isinstance(x, Tensor) and x.dtype in HIGHER else x


def raised(tree: Any) -> Any:
    """A tree of tensors in float64."""
    return tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, tree)
