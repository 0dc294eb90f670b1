"""Where autograd is cut, and whether it matters: a value that depends on what is differentiated, taken for a constant.

A `detach`, a `no_grad`, a gradient that is taken inside without a graph leave numbers that depend on the inputs and
require no gradient. Where such a number flows into a result, autograd's derivative of it is not the derivative, at
this point or at another: a factor that is zero here, a clipping that is idle, may act elsewhere. Where it is only
logged it does no harm.

The same holds for a number that is handed to Python (`item`, numpy). It is handed out multiplied by a factor, and by
one a little beside it: where the results are not the same it was used, here or where an idle bound acts. Where it is
only compared (`while error.item() > tolerance`), another factor may lead to another branch, but its neighbours lead to
the same one, and autograd is right nearly everywhere.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from hyperopt_cli.modes.memory import is_lacking
from hyperopt_cli.modes.program.aliases import memory_of, written_arguments
from hyperopt_cli.modes.program.record import ITSELF

aten = torch.ops.aten
FACTORS = (1.0, 1e3, 1e9, 1e-3, 1e-9, -1.0)  # by which a number is changed that is handed to Python
BESIDE = (1.001, 0.999)  # of each: what is used differs at both, a comparison hardly ever
RUNAWAY = 20  # times the operators without a factor: a loop that waits for what a factor keeps away
READERS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)  # which no operator shows


class Flow(TorchDispatchMode):
    """Follows what depends on some leaves through what runs inside.

    Args:
        leaves: tensors that require a gradient.
        factor: of numbers that are handed to Python.
        most: operators.

    Attributes:
        reads: whether a number that depends on them was handed to Python.
        num: operators that ran inside.
    """

    def __init__(self, leaves: Iterable[Tensor], factor: float = 1.0, most: float = float("inf")) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads, self.num = False, 0
        self._factor, self._most = factor, most
        # depends on the leaves -> whether by way of a cut; of what an operator gives beside its first result, None
        self._moved: Any = WeakTensorKeyDictionary()
        for x in leaves:
            self._moved[x] = False
        self._readers = _Readers(self)

    def __enter__(self) -> "Flow":
        """With the functions that read numbers without an operator."""
        super().__enter__()  # type: ignore[no-untyped-call]
        self._readers.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *of_error: Any) -> None:
        """Both end."""
        self._readers.__exit__(*of_error)  # type: ignore[no-untyped-call]
        super().__exit__(*of_error)  # type: ignore[no-untyped-call]

    def is_cut(self, x: Tensor) -> bool:
        """Whether `x` depends on the leaves by a way that autograd does not see."""
        if x not in self._moved or not (x.is_floating_point() or x.is_complex()):
            return False
        through = self._moved[x]
        return bool(through) or (through is not None and not x.requires_grad)

    def depends(self, x: Tensor) -> bool:
        """Whether `x` depends on the leaves at all."""
        return bool(x in self._moved)

    def handed(self, x: Tensor) -> Tensor:
        """What Python is handed in place of `x`."""
        if not self.depends(x) or not x.is_floating_point():
            return x
        self.reads = True
        return x * self._factor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator, followed.

        Raises:
            RuntimeError: there were too many.
        """
        self.num += 1
        if self.num > self._most:
            raise RuntimeError(f"more than {self._most:.0f} operators")
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        depends = [x for x in given if x in self._moved and (x.is_floating_point() or x.is_complex())]
        if func is aten._local_scalar_dense.default:
            self.reads |= bool(depends)
            out = func(*args, **kwargs)
            return out * self._factor if depends else out
        out = func(*args, **kwargs)
        if not depends or _takes_no_values(func):
            return out
        if func in ITSELF:  # a new name takes nothing for a constant yet
            self._moved[out] = self._moved[depends[0]]
            return out
        cut = any(self.is_cut(x) for x in depends)
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for i, x in enumerate(results):
            self._moved[x] = cut if cut or i == 0 else None
        for i in written_arguments(func):
            if i < len(args) and isinstance(args[i], Tensor):
                self._wrote(args[i], cut)
        return out

    def _wrote(self, x: Tensor, cut: bool) -> None:
        """Whatever lies in the memory of `x` depends on them too."""
        memory = memory_of(x)
        self._moved[x] = cut or bool(self._moved.get(x))
        base = x._base
        for other in [base] if base is not None else []:
            self._moved[other] = cut or bool(self._moved.get(other))
        for other in list(self._moved):
            if memory_of(other) == memory:
                self._moved[other] = cut or bool(self._moved[other])


def _takes_no_values(func: Any) -> bool:
    name = func._schema.name.split("::")[1]
    return bool(name.endswith("_like") or name.startswith("new_"))


class _Readers(TorchFunctionMode):
    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READERS:
            args = (self._flow.handed(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


class Cuts:
    """What is cut in a function of leaves.

    Args:
        function: of the leaves, to tensors with their graphs; evaluated again for each of `FACTORS` where it hands a
            number that depends on the leaves to Python.
        leaves: where.

    Attributes:
        is_cut: whether a result depends on the leaves by a way that autograd does not see.
        uses_numbers: whether one depends on the value of a number that was handed to Python.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], leaves: Sequence[Tensor]) -> None:
        self._function, self._leaves, self._most = function, leaves, float("inf")
        try:
            found, flow = self._evaluated(1.0)
        except Exception:  # no second derivative, no memory for its graph: what can be cut may be
            self.is_cut, self.uses_numbers = True, False
            return
        self._most = RUNAWAY * flow.num + 1000
        self.is_cut = any(flow.is_cut(x) for x in found)
        self.uses_numbers = flow.reads and any(self._is_used(factor) for factor in FACTORS)

    def _evaluated(self, factor: float) -> tuple[Sequence[Tensor], Flow]:
        given = [x.detach().requires_grad_() for x in self._leaves]
        with torch.enable_grad(), Flow(given, factor, self._most) as flow:
            return self._function(*given), flow

    def _is_used(self, factor: float) -> bool:
        here = self._changed(factor)
        return here is not None and all(_differ(here, self._changed(factor * beside)) for beside in BESIDE)

    def _changed(self, factor: float) -> Sequence[Tensor] | None:
        """The results with numbers changed by a factor; None where the function refuses them."""
        try:
            return self._evaluated(factor)[0]
        except Exception as error:
            if is_lacking(error):
                raise
            return None


def _differ(found: Sequence[Tensor], other: Sequence[Tensor] | None) -> bool:
    if other is None:
        return False
    return not all(torch.equal(x, y) or bool(y.isnan().any()) for x, y in zip(found, other, strict=True))
