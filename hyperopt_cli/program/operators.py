"""A function of tensors as the list of operators that it comes to, below autograd.

It is evaluated once on tensors without content and written down (`make_fx`): double backwards, tangents carried by
rules of our own and update rules alike become one list of plain operators, which can be compiled: also what torch
can't compile otherwise, a double backward or a derivative by hand. Equal operators on equal tensors are taken once, so
that chunks of columns share the gradient.

A list of operators has lost Python: a branch, a seed or an index that the function takes from its arguments is frozen
as it was. `same` tells whether two of them are one computation.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hyperopt_cli.errors import UsageError
from hyperopt_cli.program.failures import first_line

ITSELF = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}  # where nothing is written, no more than a name


# Of their argument they take no more than its shape: written so, they do not wait for it.
FILLED = {
    torch.ops.aten.ones_like.default: 1,
    torch.ops.aten.zeros_like.default: 0,
    torch.ops.aten.new_zeros.default: 0,
    torch.ops.aten.new_ones.default: 1,
}


READS_A_NUMBER = (
    "compile: the step reads a number of a tensor (item(), float(), a branch on it), which no compiler can wait for; "
    "set compile: false"
)


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
    """Writes down the operators of `function` at these arguments, flattened.

    Raises:
        UsageError: it reads a number of a tensor, draws at random, or cannot be evaluated without content.
    """
    where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    given = _apart([leaves[i] for i in where])
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
        graph = traced(*given)
        if any(writes(node) for node in graph.graph.nodes):
            functional = functionalize(graph, remove="mutations")
            graph = make_fx(functional, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
    except UsageError:
        raise
    except Exception as error:
        reason = first_line(error)
        if "data-dependent" in reason:
            raise UsageError(READS_A_NUMBER) from error
        raise UsageError(
            f"compile: the step cannot be written down as operators ({reason}); set compile: false"
        ) from error
    _refuse(graph)
    _take_once(graph)
    return Operators(graph, _constants_lifted(graph), shape[0])


def same(one: Operators, two: Operators, with_constants: bool = True) -> bool:
    """Returns whether two lists have the same operators on the same tensors, and, if asked for, equal constants."""
    if one.graph.code != two.graph.code or one.results != two.results:
        return False
    pairs = list(zip(one.constants, two.constants, strict=True))
    if any(x.shape != y.shape or x.dtype != y.dtype or x.stride() != y.stride() for x, y in pairs):
        return False
    return not with_constants or all(x is y or torch.equal(x, y) for x, y in pairs)


def difference(one: Operators, two: Operators) -> str:
    """Says where two lists of operators part, in a phrase."""
    pairs = zip_longest(one.graph.code.splitlines(), two.graph.code.splitlines(), fillvalue="nothing more")
    for x, y in pairs:
        if x != y:
            return f"once `{shorten(x, 80)}`, then `{shorten(y, 80)}`"
    return "its operators are the same, the tensors that they take are others"


def _apart(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors like these, each the only one in its memory: what a derivative does may depend on what else lies there.

    One that is given twice would be taken for one argument.
    """
    first = {id(x): i for i, x in reversed(list(enumerate(tensors)))}
    return [x if first[id(x)] == i and _is_alone(x) else _like(x) for i, x in enumerate(tensors)]


def _is_alone(x: Tensor) -> bool:
    return bool(x.storage_offset() == 0) and bool(x.untyped_storage().nbytes() == _like(x).untyped_storage().nbytes())


def _like(x: Tensor) -> Tensor:
    """Same shape, strides and dtype, without content."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _refuse(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten._local_scalar_dense.default:
            raise UsageError(READS_A_NUMBER)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise UsageError(
                f"compile: the step draws random numbers ({node.target}), which compiled would be others; set "
                "compile: false"
            )


def _take_once(graph: fx.GraphModule) -> None:
    """Takes equal operators on equal arguments once; a tensor that is reached twice is written down twice."""
    nodes = list(graph.graph.nodes)
    if any(writes(node) for node in nodes):
        return  # between two of them an argument may have changed
    seen: dict[Any, fx.Node] = {}
    for node in nodes:
        if node.op == "get_attr":
            first = seen.setdefault(id(getattr(graph, str(node.target))), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.graph.erase_node(node)
        if node.op != "call_function":
            continue
        if node.target in ITSELF:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            continue
        if node.target in FILLED:
            node = _of_one_number(graph, node, FILLED[node.target])
        first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _of_one_number(graph: fx.GraphModule, node: fx.Node, number: int) -> fx.Node:
    """The node that fills a tensor like that of `node`."""
    like = node.meta["val"]
    with graph.graph.inserting_before(node):
        made = graph.graph.call_function(
            torch.ops.aten.full.default, (list(like.shape), number), {"dtype": like.dtype, "device": like.device}
        )
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)
    return made


def writes(node: fx.Node) -> bool:
    """Returns whether the operator changes an argument."""
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
