"""Does a loss write into what outlives it? Running statistics, the vectors of a spectral norm, a counter.

A mode evaluates the training loss more often than training does: probes, examinations, the backward sweep, steps taken
again. What a loss leaves behind would then be another model's.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperopt_cli.errors import UsageError
from hyperopt_cli.program.aliases import memory_of

aten = torch.ops.aten
# operators whose schemas do not say that they write: running mean and variance, and whether they do
_UNSAID = {
    aten.native_batch_norm.default: (3, 4, 5),
    aten.cudnn_batch_norm.default: (3, 4, 5),
    aten.miopen_batch_norm.default: (3, 4, 5),
}
CURES = (
    "take BatchNorm with track_running_stats=False, spectral_norm in eval(), an Embedding without max_norm; write into "
    "a copy"
)


class Unwritten(TorchDispatchMode):
    """Inside, nothing may be written into a tensor that was there before.

    Args:
        what: that is evaluated.

    Raises:
        UsageError: something is.
    """

    def __init__(self, what: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._what, self._own = what, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operator, unless it writes into a tensor that was there before."""
        kwargs = kwargs or {}
        for x in _written(func, args, kwargs):
            if memory_of(x) not in self._own:
                raise UsageError(
                    f"{self._what}: {func} writes into a tensor {list(x.shape)} that was there before. Modes evaluate "
                    f"a loss more often than training does, so that what it leaves behind would be wrong: {CURES}"
                )
        result = func(*args, **kwargs)
        given = {memory_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = {memory_of(x) for x in tree_leaves(result) if isinstance(x, Tensor)}
        self._own |= made if func is aten.lift_fresh.default else made - given
        return result


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    mean, var, training = _UNSAID.get(func, (None, None, None))
    if training is not None and args[training]:
        yield from (x for x in (args[mean], args[var]) if isinstance(x, Tensor))
    for i, argument in enumerate(func._schema.arguments if func._schema.is_mutable else ()):
        x = args[i] if i < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (each for each in tree_leaves(x) if isinstance(each, Tensor))
