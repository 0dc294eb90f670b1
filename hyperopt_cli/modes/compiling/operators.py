"""A function of tensors as the list of operators that it comes to, below autograd.

It is evaluated once on tensors without content and written down (`make_fx`): double backwards, tangents carried by
rules of our own and update rules alike become one list of plain operators, which can be compiled: also what torch
can't compile otherwise, a double backward or a derivative by hand. Equal operators on equal tensors are taken once, so
that chunks of columns share the gradient.

A list of operators has lost Python: a branch, a seed or an index that the function takes from its arguments is frozen
as it was. `same` tells whether two of them are one computation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hyperopt_cli.errors import UsageError


class Operators(NamedTuple):
    """A function written down.

    Attributes:
        graph: of the tensors among its arguments, then the constants; returns a flat list.
        constants: tensors that the function reached beside its arguments: data, frozen parameters.
        results: the structure of what it returns.
    """

    graph: fx.GraphModule
    constants: list[Tensor]
    results: TreeSpec

    def __len__(self) -> int:
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)


def written_down(function: Callable[..., Any], leaves: Sequence[Any], spec: TreeSpec) -> Operators:
    """The operators of `function` at these arguments, flattened.

    Raises:
        UsageError: it reads a number of a tensor, draws at random, or cannot be evaluated without content.
    """
    where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    shape: list[TreeSpec] = []

    def of_tensors(*tensors: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for i, x in zip(where, tensors, strict=True):
            filled[i] = x
        results, results_spec = tree_flatten(function(*tree_unflatten(filled, spec)))
        shape[:] = [results_spec]
        return [x.detach() for x in results]

    try:
        traced = make_fx(of_tensors, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = traced(*(leaves[i] for i in where))
    except UsageError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"compile: the step cannot be written down as operators ({reason})") from error
    _refuse_random(graph)
    _take_once(graph)
    return Operators(graph, _constants_lifted(graph), shape[0])


def same(one: Operators, two: Operators, with_constants: bool = True) -> bool:
    """The same operators on the same tensors; the constants may be others if that is asked for."""
    if one.graph.code != two.graph.code or one.results != two.results:
        return False
    pairs = list(zip(one.constants, two.constants, strict=True))
    if any(x.shape != y.shape or x.dtype != y.dtype or x.stride() != y.stride() for x, y in pairs):
        return False
    return not with_constants or all(x is y or torch.equal(x, y) for x, y in pairs)


def _refuse_random(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise UsageError(f"compile: the step draws random numbers ({node.target}), which compiled would be others")


def _take_once(graph: fx.GraphModule) -> None:
    """Takes equal operators on equal arguments once."""
    nodes = list(graph.graph.nodes)
    if any(_writes(node) for node in nodes):
        return  # between two of them an argument may have changed
    seen: dict[Any, fx.Node] = {}
    for node in nodes:
        if node.op != "call_function":
            continue
        first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _constants_lifted(graph: fx.GraphModule) -> list[Tensor]:
    """Makes arguments of the tensors that the graph holds, and returns them."""
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    constants = []
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        constants.append(getattr(graph, str(node.target)))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"constant_{len(constants)}")
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return constants
