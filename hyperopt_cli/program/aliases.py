"""Memory: whose it is, which arguments an operator's schema says that it writes, whether its result is a view."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def memory_of(x: Tensor) -> int:
    """Returns what tells the memory of one tensor from that of another; a sparse one has none but its own parts."""
    if x.layout != torch.strided:
        return id(x)
    memory: int = x.untyped_storage()._cdata
    return memory


@cache
def written_arguments(func: Any) -> tuple[int, ...]:
    """Returns the positions of the arguments that the operator writes into."""
    return tuple(
        i for i, each in enumerate(func._schema.arguments) if each.alias_info is not None and each.alias_info.is_write
    )


@cache
def is_view(func: Any) -> bool:
    """Returns whether a result lies in the memory of an argument that is not written."""
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)


@cache
def functional(func: Any) -> Any:
    """Returns the counterpart of an operator in place, which returns what that writes; None without one.

    Overloads of the two may be named otherwise (`pow_.Scalar`, `pow.Tensor_Scalar`): it is the one of the same types.
    """
    name = func._schema.name.split("::")[1]
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    if packet is None or not func._schema.name.startswith("aten::"):
        return None
    types = [str(each.type) for each in func._schema.arguments]
    for overload in packet.overloads():
        plain = getattr(packet, overload)
        if [str(each.type) for each in plain._schema.arguments] == types and not plain._schema.is_mutable:
            return plain
    return None
