"""Steps of one kind: those whose losses come to the same operators, as autograd's graph of the loss shows them.

The graph is there anyway, and walking it costs a few microseconds a node. What it does not show (a `no_grad`, the
values of Python) is looked at in steps drawn by seed.
"""

from collections import Counter
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

Kind = frozenset[Any]


def nodes_of(value: Tensor) -> list[Any]:
    """Every node of the graph of `value`, once."""
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
    """The operators of a loss, each with those that it reads and how often; nothing without a graph."""
    edges = Counter(
        (type(node), None if following is None else type(following))
        for node in nodes_of(value)
        for following, _ in node.next_functions
    )
    return frozenset(edges.items())


def own_functions(kind: Kind) -> str:
    """Names the autograd Functions that are not torch's."""
    names = {node.__name__.removesuffix("Backward") for (node, _), _ in kind if issubclass(node, BackwardCFunction)}
    return f" (there are autograd Functions that are not torch's: {', '.join(sorted(names))})" if names else ""


def code_of(function: Any, depth: int = 3) -> Any:
    """What tells one user's function from another: its code, and that of the functions that it closes over."""
    while isinstance(function, partial):
        function = function.func
    inner = getattr(function, "__func__", function)
    code = getattr(inner, "__code__", None)
    if code is None:
        return type(function)
    cells = [each.cell_contents for each in inner.__closure__ or () if _is_filled(each)]
    plain = tuple(x for x in cells if isinstance(x, bool | int | float | str))
    return code, plain, tuple(code_of(x, depth - 1) for x in cells if depth and callable(x))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not yet assigned
        return False
