"""Operators whose tangents torch takes wrongly, and says nothing.

Each was compared with differences of the plain gradient (`tests/engines/test_forward_faults.py`); all are part of
https://github.com/pytorch/pytorch/issues/198017. A fault is looked up by the name of the node that the operator leaves
in autograd's graph of the loss. `FORWARD_FAULTS` concerns whatever takes the tangent of a gradient by torch's forward
derivatives (forward over reverse). Where a tangent is differentiated once more (reverse over forward) torch has more of
them, through layer and batch normalisation too, which is why no run takes it.

An autograd.Function with a `jvp` of its own is wrong under nested forward derivatives alone (pytorch#197867), which no
engine takes.

`double_backward_fault` is the like of what differentiates a gradient in reverse.
"""

from typing import Any

# Wrong on torch 2.11 to 2.14.
FORWARD_FAULTS: dict[str, str] = {
    "LogcumsumexpBackward0": "pytorch#196705",  # a prefix far below a later element
    "CholeskyInverseBackward0": "pytorch#196682",
    "CholeskySolveBackward0": "pytorch#196694",
    "TriangularSolveBackward0": "pytorch#198017",
    "LinalgDetBackward0": "pytorch#192521",  # where singular values coincide
    "ScatterReduceBackward0": "pytorch#196702",  # of reduce="prod" alone
    "SincBackward0": "pytorch#198017",  # at zero
}


def forward_fault(node: Any) -> str | None:
    """Returns the thread that says what is wrong with the tangents that torch takes of an operator.

    Args:
        node: of autograd's graph of the loss, left there by the operator.

    Returns:
        Such as "pytorch#196705"; None where no fault is known.
    """
    name = node.name()
    if name == "ScatterReduceBackward0" and node._saved_reduce != "prod":
        return None
    return FORWARD_FAULTS.get(name)


def double_backward_fault(node: Any) -> str | None:
    """Says what is wrong with torch's second derivative in reverse of an operator; None: nothing is known.

    Args:
        node: of autograd's graph of the loss, left there by the operator.
    """
    name = node.name()
    if name == "NativeLayerNormBackward0" and node._saved_weight is None and node.next_functions[2][0] is not None:
        return "layer normalisation with a bias alone: zero or an error, pytorch#79705"
    if name == "WeightNormInterfaceBackward0":
        return "torch._weight_norm: it takes the norm for a constant, pytorch#198017"
    return None
