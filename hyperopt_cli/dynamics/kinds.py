"""Steps of one kind: those whose losses come to the same operators, as autograd's graph of the loss shows them.

The graph is there anyway, and walking it costs a few microseconds a node. What leaves it without a trace (a detach, a
hook, whatever is called under `no_grad`, a number read) is counted beside it, by name, while the loss is evaluated;
that costs about a microsecond for each function of torch. What neither shows (the values of Python) is looked at in
steps drawn by seed.
"""

from collections import Counter
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from hyperopt_cli.dynamics.cudnn import without_onednn

# A hook is called again by a double backward, on another gradient; a node's is set through grad_fn.
HOOKS = {"register_hook", "grad_fn"}
UNSEEN = "hyperopt: what leaves the graph"  # under this key in the metadata of the graph's last node
Kind = frozenset[Any]


METHODS = (
    *("detach", "detach_", "register_hook", "requires_grad_", "new_tensor"),
    *("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__", "__complex__", "__index__"),
    *("__format__", "__dlpack__"),
)
LEAVING = {getattr(Tensor, name): name for name in METHODS} | {
    Tensor.data.__get__: "data",  # type: ignore[attr-defined]
    Tensor.grad_fn.__get__: "grad_fn",  # type: ignore[union-attr]
    torch.tensor: "tensor",
    torch.autograd.grad: "grad",
    torch._C._set_grad_enabled: "set_grad_enabled",
}


class Leaving(TorchFunctionMode):
    """Counts what leaves autograd's graph inside, by name; an LSTM is computed so that it has its derivatives."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._begun = torch.is_grad_enabled()
        self._graph = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and counts it where it is one of `LEAVING`, or no graph is made of it."""
        if func in LEAVING:
            self.counts[LEAVING[func]] += 1
            if func is torch._C._set_grad_enabled:
                self._graph = args[0] or not self._begun
        elif not self._graph:
            self.counts[getattr(func, "__name__", "")] += 1
        if func is torch.lstm:
            return without_onednn(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def mark(self, value: Tensor) -> None:
        """Keeps the counts with the graph of what was evaluated inside."""
        if self.counts and value.grad_fn is not None:
            metadata: Any = value.grad_fn.metadata
            metadata[UNSEEN] = self.counts


def nodes_of(value: Tensor) -> list[Any]:
    """Returns every node of the graph of `value`, once."""
    seen: dict[Any, None] = {}
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen[node] = None
        stack += [following for following, _ in node.next_functions]
    return list(seen)


def kind_of(value: Tensor) -> Kind:
    """Counts the operators of a loss, each with those that it reads, and the calls that left the graph."""
    counts: Counter[Any] = Counter()
    for node in nodes_of(value):
        counts.update((type(node), None if after is None else type(after)) for after, _ in node.next_functions)
        for name, num in node.metadata.get(UNSEEN, {}).items():
            counts[name, None] += num
    return frozenset(counts.items())


def own_functions(kind: Kind) -> str:
    """Names the autograd Functions that are not torch's."""
    nodes = {node for (node, _), _ in kind if isinstance(node, type) and issubclass(node, BackwardCFunction)}
    names = {node.__name__.removesuffix("Backward") for node in nodes}
    return f" (there are autograd Functions that are not torch's: {', '.join(sorted(names))})" if names else ""


def constructs_of(value: Tensor, is_exact: bool) -> str:
    """Names the user's Functions in the graph of `value`, and in a run in float64 the formats of fewer digits."""
    return own_functions(kind_of(value)) + (_coarse_formats(value) if is_exact else "")


def _coarse_formats(value: Tensor) -> str:
    made = {each.dtype for node in nodes_of(value) for each in node._input_metadata if each.dtype.is_floating_point}
    names = sorted(str(x).removeprefix("torch.") for x in made if x != torch.float64)
    return f" (a run in float64 shows the rounding of what is in {' and '.join(names)}: use float32)" if names else ""


def has_hook(kind: Kind) -> bool:
    """Returns whether a hook may be on the way."""
    return any(name in HOOKS for (name, _), _ in kind)


def may_be_cut(kind: Kind) -> bool:
    """Returns whether a hook, a Function of a user's own or a tensor's `data` may be on the way."""
    if has_hook(kind) or any(name in ("data", "__dlpack__") for (name, _), _ in kind):
        return True
    return any(isinstance(node, type) and issubclass(node, BackwardCFunction) for (node, _), _ in kind)


def code_of(function: Any, depth: int = 3) -> Any:
    """Returns what tells one user's function from another: its code, and that of the functions it closes over."""
    while issubclass(type(function), partial):  # by the type: a proxy of what is gone answers nothing
        function = function.func
    inner = function.__func__ if type(function) is MethodType else function
    if type(inner) is not FunctionType:
        return type(function)
    cells = [each.cell_contents for each in inner.__closure__ or () if _is_filled(each)]
    plain = tuple(x for x in cells if type(x) in (bool, int, float, str))
    return inner.__code__, plain, tuple(code_of(x, depth - 1) for x in cells if depth and callable(x))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not yet assigned
        return False
