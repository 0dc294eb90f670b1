"""Does a loss broadcast outputs against targets? [B, 1] - [B] is [B, B]: every output meets every target."""

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def broadcast(loss: Callable[[], Tensor], outputs: Tensor, targets: Tensor) -> str:
    """Returns in words how a loss broadcasts its outputs against its targets; empty if it doesn't.

    Looked for is an operator that takes something made of the outputs alone, something made of the targets alone, of as
    many elements, and has a result of more. Torch's own losses warn where they do so. Outputs and targets of one shape,
    or of another number of elements, are not asked.

    Args:
        loss: computes the loss of these outputs and targets.
        outputs: the model's outputs, [B, ...].
        targets: the targets, [B, ...].
    """
    if outputs.numel() != targets.numel() or outputs.shape == targets.shape:
        return ""  # logits of classes, or a pair already
    with warnings.catch_warnings(record=True) as warned, _Watch(outputs, targets) as watch:
        warnings.simplefilter("always")
        loss()
    by_torch = any("different to the input size" in str(each.message) for each in warned)
    return watch.seen or ("by torch's loss" if by_torch else "")


class _Watch(TorchDispatchMode):
    """Follows which tensors are made of the outputs and which of the targets, by the memory that they lie in."""

    def __init__(self, outputs: Tensor, targets: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = ""
        self._made_of: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # or the memory of one would be another's
        self._follow(outputs, frozenset({"outputs"}))
        self._follow(targets, frozenset({"targets"}))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        made_of = [self._made_of.get(_memory(x), frozenset[str]()) for x in given]
        result = func(*args, **(kwargs or {}))
        of_outputs = [x for x, of in zip(given, made_of, strict=True) if of == {"outputs"}]
        of_targets = [x for x, of in zip(given, made_of, strict=True) if of == {"targets"}]
        for made in tree_leaves(result):
            if not isinstance(made, Tensor):
                continue
            for x, y in product(of_outputs, of_targets):
                if x.shape != y.shape and x.numel() == y.numel() > 1 and made.numel() > x.numel():
                    name, shapes = func.overloadpacket.__name__, f"{list(x.shape)} and {list(y.shape)}"
                    self.seen = f"{name} of {shapes} gives {list(made.shape)}"
            self._follow(made, frozenset().union(*made_of))
        return result

    def _follow(self, x: Tensor, made_of: frozenset[str]) -> None:
        self._alive.append(x)
        self._made_of[_memory(x)] = self._made_of.get(_memory(x), frozenset()) | made_of


def _memory(x: Tensor) -> int:
    memory: int = x.untyped_storage()._cdata
    return memory
