"""A step partitioned into two compiled functions: forward, and backward, which has to wait for the adjoint.

    forward:   arguments -> outputs, and what is saved for backward
    backward:  what was saved, cotangent -> its results

The operators of the whole (AOTAutograd's joint graph) are divided by whether they depend on the cotangent. What crosses
the border is saved, unless it is an argument or an output, which is there anyway, or can be had again from these and
from what is saved by operators on single elements and by views, which the compiler merges into what reads them. So
matrix products are taken once, and what they give is saved. Cheap operators are computed again as in Chen et al. 2016,
"Training deep nets with sublinear memory cost", https://arxiv.org/abs/1604.06174, section 3.
"""

from collections.abc import Iterable
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from hyperopt_cli.errors import UsageError
from hyperopt_cli.program.compiled_step import Compiled, CompiledStep
from hyperopt_cli.program.failures import named_as_of_compiling
from hyperopt_cli.program.operators import Operators, writes

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


class Partition(NamedTuple):
    """The two lists of operators.

    Attributes:
        forward: of all arguments but the cotangent, then the constants; returns outputs, then what else is saved.
        backward: of `saved`, then the cotangent; returns its results.
        saved: which of `forward`'s inputs (first) and outputs (second) are saved for `backward`.
        num_outputs: of `forward`, without what is only saved.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    saved: tuple[list[int], list[int]]
    num_outputs: int


class Saved(NamedTuple):
    """What a step saves for backward.

    Attributes:
        key: which compiled step it was.
        tensors: all of it.
        more: those among them that are neither arguments nor outputs.
        batch: those among them that are of the batch.
    """

    key: Any
    tensors: list[Tensor]
    more: list[Tensor]
    batch: list[Tensor]


class PartitionedStep(CompiledStep):
    """`function(batch, *trees, cotangent) -> (outputs, results of backward)`, linear in the cotangent."""

    def __init__(self) -> None:
        super().__init__(linear=-1)

    def forward(self, batch: Any, others: Iterable[Any], cotangent: Any, *trees: Any) -> tuple[Any, Saved]:
        """Returns the outputs, and what is saved for backward.

        Args:
            batch: of this step.
            others: batches of other steps.
            cotangent: like the one that `backward` will take.
            trees: whatever else the function takes.
        """
        with named_as_of_compiling("the compiled step"):
            key, tensors, prepared = self._at(batch, others, *trees, cotangent)
            partition, (run, _) = prepared.compiled.partition, prepared.compiled.calls
            given = tensors[: len(tensors) - len(tree_leaves(cotangent))] + prepared.operators.constants
            made = list(run(*given))
        saved = [given[i] for i in partition.saved[0]] + [made[i] for i in partition.saved[1]]
        outputs = tree_unflatten(made[: partition.num_outputs], prepared.operators.results.child(0))
        num_batch = sum(isinstance(x, Tensor) for x in tree_leaves(batch))
        of_batch = [given[i] for i in partition.saved[0] if i < num_batch]
        return outputs, Saved(key, saved, made[partition.num_outputs :], of_batch)

    def backward(self, saved: Saved, cotangent: Any) -> Any:
        """Returns the results that depend on the cotangent, from what `forward` saved."""
        prepared = self._of_this[saved.key]
        with named_as_of_compiling("the compiled step"):
            made = list(prepared.compiled.calls[1](*saved.tensors, *tree_leaves(cotangent)))
        return tree_unflatten(made, prepared.operators.results.child(1))

    def _compile(self, operators: Operators, leaves: list[Any], spec: TreeSpec) -> Compiled:
        """Both functions, and one of everything that checks them."""
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        cotangent = tree_leaves(tree_unflatten(leaves, spec)[-1])
        num_given = len(tensors) - len(cotangent)
        partition = partitioned(operators, num_given, len(cotangent), operators.results.child(0).num_leaves)
        given = tensors[:num_given] + operators.constants
        forward = self._build(partition.forward, given)
        made = list(forward(*given))
        saved = [given[i] for i in partition.saved[0]] + [made[i] for i in partition.saved[1]]
        backward = self._build(partition.backward, [*saved, *cotangent])

        def whole(*every: Tensor) -> list[Tensor]:
            return [*made[: partition.num_outputs], *backward(*saved, *cotangent)]

        return Compiled(operators, (forward, backward), whole, partition)


def partitioned(operators: Operators, num_given: int, num_cotangent: int, num_outputs: int) -> Partition:
    """Divides the operators.

    Args:
        operators: whose arguments are the given ones, the cotangent, the constants.
        num_given: arguments of forward.
        num_cotangent: arguments that only backward has.
        num_outputs: results that do not need the cotangent; they come first.

    Raises:
        UsageError: an operator writes into its arguments, or an output depends on the cotangent.
    """
    nodes = list(operators.graph.graph.nodes)
    if written := [str(node.target) for node in nodes if writes(node)]:
        raise UsageError(
            f"compile: {written[0]} writes into its arguments, so that the step cannot be divided; write `x = x + y` "
            "instead"
        )
    inputs = [node for node in nodes if node.op == "placeholder"]
    cotangent = inputs[num_given : num_given + num_cotangent]
    given = inputs[:num_given] + inputs[num_given + num_cotangent :]
    results = list(nodes[-1].args[0])
    waiting = _depending(nodes, cotangent)
    outputs = results[:num_outputs]
    if any(node in waiting for node in outputs):
        raise UsageError("compile: the forward step depends on the adjoint")
    border = _border(results[num_outputs:], waiting, set(given) | set(outputs))
    computed = [node for node in border if node not in given]
    made = [*outputs, *(node for node in computed if node not in outputs)]
    saved_inputs = [node for node in given if node in border]
    return Partition(
        _graph(operators.graph, given, made),
        _graph(operators.graph, [*saved_inputs, *computed, *cotangent], results[num_outputs:]),
        ([given.index(node) for node in saved_inputs], [made.index(node) for node in computed]),
        num_outputs,
    )


def _depending(nodes: list[fx.Node], on: list[fx.Node]) -> set[fx.Node]:
    found = set(on)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _border(results: list[fx.Node], waiting: set[fx.Node], known: set[fx.Node]) -> list[fx.Node]:
    """What the results take from forward, with cheap operators taken again; in the order in which it is met."""
    border: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    stack = [node for node in results if isinstance(node, fx.Node)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in known or (node not in waiting and not _is_cheap(node)):
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
