"""A step in two compiled halves: what can be computed on the way there, and what has to wait for the adjoint.

    there: arguments -> early results, and what is kept
    back:  what was kept, late arguments -> late results

The operators of the whole are divided by whether they depend on a late argument. What crosses the border is kept,
unless it is an argument or an early result, which is there anyway, or can be had again from these and from what is kept
by operators on single elements and by views, which the compiler merges into what reads them. So matrix products are
taken once, and what they give is kept. Cheap operators are computed again as in Chen et al. 2016, "Training deep nets
with sublinear memory cost", https://arxiv.org/abs/1604.06174, section 3.
"""

from collections.abc import Iterable
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from hyperopt_cli.errors import UsageError
from hyperopt_cli.program.failures import named_as_of_compiling
from hyperopt_cli.program.operators import Operators, writes
from hyperopt_cli.program.whole_step import Compiled, WholeStep

aten = torch.ops.aten
# beside views and what is tagged as pointwise
AS_CHEAP = {
    aten.cat.default,
    aten.clone.default,
    aten._to_copy.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.arange.default,
    aten.scalar_tensor.default,
}


class Halves(NamedTuple):
    """The two lists of operators.

    Attributes:
        there: of all arguments but the late ones, then the constants; returns early results, then what else is kept.
        back: of `taken`, then the late arguments; returns the late results.
        taken: which of `there`'s inputs (first) and outputs (second) the way back takes.
        num_early: results of `there` that are no more than kept.
    """

    there: fx.GraphModule
    back: fx.GraphModule
    taken: tuple[list[int], list[int]]
    num_early: int


class Kept(NamedTuple):
    """What the way back takes of a step.

    Attributes:
        key: which compiled step it was.
        tensors: all of it.
        more: those among them that are neither arguments nor early results.
        batch: those among them that are of the batch.
    """

    key: Any
    tensors: list[Tensor]
    more: list[Tensor]
    batch: list[Tensor]


class TwoHalves(WholeStep):
    """`function(batch, *trees, late) -> (early, late results)`, compiled in two halves; linear in `late`."""

    def __init__(self) -> None:
        super().__init__(linear=-1)

    def there(self, batch: Any, others: Iterable[Any], late: Any, *trees: Any) -> tuple[Any, Kept]:
        """The early results, and what the way back takes.

        Args:
            batch: of this step.
            others: batches of other steps.
            late: like the late argument.
            trees: whatever else the function takes.
        """
        with named_as_of_compiling("the compiled step"):
            key, tensors, prepared = self._at(batch, others, *trees, late)
            halves, (run_there, _) = prepared.compiled.halves, prepared.compiled.calls
            given = tensors[: len(tensors) - len(tree_leaves(late))] + prepared.operators.constants
            made = list(run_there(*given))
        kept = [given[i] for i in halves.taken[0]] + [made[i] for i in halves.taken[1]]
        early = tree_unflatten(made[: halves.num_early], prepared.operators.results.child(0))
        num_batch = sum(isinstance(x, Tensor) for x in tree_leaves(batch))
        of_batch = [given[i] for i in halves.taken[0] if i < num_batch]
        return early, Kept(key, kept, made[halves.num_early :], of_batch)

    def back(self, kept: Kept, late: Any) -> Any:
        """The late results."""
        prepared = self._of_this[kept.key]
        with named_as_of_compiling("the compiled step"):
            made = list(prepared.compiled.calls[1](*kept.tensors, *tree_leaves(late)))
        return tree_unflatten(made, prepared.operators.results.child(1))

    def _compile(self, operators: Operators, leaves: list[Any], spec: TreeSpec) -> Compiled:
        """Both halves, and a function of everything that checks them."""
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        late = tree_leaves(tree_unflatten(leaves, spec)[-1])
        num_given = len(tensors) - len(late)
        halves = halved(operators, num_given, len(late), operators.results.child(0).num_leaves)
        given = tensors[:num_given] + operators.constants
        there = self._build(halves.there, given)
        made = list(there(*given))
        kept = [given[i] for i in halves.taken[0]] + [made[i] for i in halves.taken[1]]
        back = self._build(halves.back, [*kept, *late])
        return Compiled(
            operators, (there, back), lambda *every: [*made[: halves.num_early], *back(*kept, *late)], halves
        )


def halved(operators: Operators, num_given: int, num_late: int, num_early: int) -> Halves:
    """Divides the operators.

    Args:
        operators: whose arguments are the given ones, the late ones, the constants.
        num_given: arguments that are there at once.
        num_late: arguments that come later.
        num_early: results that need none of the late ones; they come first.

    Raises:
        UsageError: an operator writes into its arguments, or an early result depends on a late argument.
    """
    nodes = list(operators.graph.graph.nodes)
    if written := [str(node.target) for node in nodes if writes(node)]:
        raise UsageError(
            f"compile: {written[0]} writes into its arguments, so that the step cannot be divided; write `x = x + y` "
            "instead"
        )
    inputs = [node for node in nodes if node.op == "placeholder"]
    late = inputs[num_given : num_given + num_late]
    given = inputs[:num_given] + inputs[num_given + num_late :]
    outputs = list(nodes[-1].args[0])
    waiting = _depending(nodes, late)
    early = outputs[:num_early]
    if any(node in waiting for node in early):
        raise UsageError("compile: the step there depends on the adjoint")
    border = _border(outputs[num_early:], waiting, set(given) | set(early))
    from_there = [node for node in border if node not in given]
    made = [*early, *(node for node in from_there if node not in early)]
    taken_given = [node for node in given if node in border]
    return Halves(
        _graph(operators.graph, given, made),
        _graph(operators.graph, [*taken_given, *from_there, *late], outputs[num_early:]),
        ([given.index(node) for node in taken_given], [made.index(node) for node in from_there]),
        num_early,
    )


def _depending(nodes: list[fx.Node], on: list[fx.Node]) -> set[fx.Node]:
    found = set(on)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _border(results: list[fx.Node], waiting: set[fx.Node], there: set[fx.Node]) -> list[fx.Node]:
    """What the results take from the way there, with cheap operators taken again; in the order in which it is met."""
    border: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    stack = [node for node in results if isinstance(node, fx.Node)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in there or (node not in waiting and not _is_cheap(node)):
            border[node] = None
        else:
            stack += [source for source in node.all_input_nodes if node.op == "call_function"]
    return list(border)


def _is_cheap(node: fx.Node) -> bool:
    """Whether it is merged into what reads it: an operator on single elements, or a view."""
    if node.op != "call_function":
        return False
    if node.target is getitem:  # of what an operator with several results gives, the results cross the border
        (source,) = node.all_input_nodes
        return _is_cheap(source)
    if node.target in AS_CHEAP or torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def _graph(source: fx.GraphModule, inputs: list[fx.Node], outputs: list[fx.Node]) -> fx.GraphModule:
    """The operators between."""
    made = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        env[node] = made.placeholder(node.name)
        env[node].meta = dict(node.meta)
    needed = _between(inputs, outputs)
    for node in source.graph.nodes:
        if node in needed and node not in env:
            env[node] = made.node_copy(node, lambda n: env[n])
    made.output([env[node] if isinstance(node, fx.Node) else node for node in outputs])
    made.lint()
    return fx.GraphModule(source, made)


def _between(inputs: list[fx.Node], outputs: list[fx.Node]) -> set[fx.Node]:
    ends, found = set(inputs), set[fx.Node]()
    stack = [node for node in outputs if isinstance(node, fx.Node)]
    while stack:
        node = stack.pop()
        if node in found or node in ends:
            continue
        found.add(node)
        stack += node.all_input_nodes
    return found
