"""Where autograd is cut, and whether it matters: a value that depends on what is differentiated, taken for a constant.

A `detach`, a `no_grad`, a gradient that is taken inside without a graph leave numbers that depend on the inputs and
require no gradient. Where such a number flows into a result, autograd's derivative of it is not the derivative, at
this point or at another: a factor that is zero here, a clipping that is idle, may act elsewhere. Where it is only
logged it does no harm.

The same holds for a number that is handed to Python (`item`, numpy). It is handed out changed, by a factor, and by one
a little beside it: where the results are not the same it was used, here or where an idle bound acts. Where it is only
compared (`while error.item() > tolerance`), another factor may lead to another branch, but its neighbours lead to
the same one, and autograd is right nearly everywhere. What is cut or used behind another branch is found there: numbers
are changed, and what is handed out as true or false is handed out as the other.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from hyperopt_cli.memory import is_lacking
from hyperopt_cli.program.aliases import memory_of, written_arguments
from hyperopt_cli.program.record import ITSELF

aten = torch.ops.aten
# methods that no operator shows
READERS = ("numpy", "tolist", "__array__", "__dlpack__", "storage", "__repr__", "__reduce_ex__")
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)  # of lists of tensors, likewise
SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
CONSTANT = frozenset({"round", "floor", "ceil", "trunc", "sign", "sgn", "signbit", "heaviside"})  # nearly everywhere
FACTORS = (1.0, 1e3, 1e-3, -1.0, -1e3, 1e9, 1e-9)  # by which a number is changed that is handed to Python
FINE = (1.5, 0.7, 1.1, 0.9, 3.0, 0.3, -0.3, -3.0, 10.0, 0.1, 30.0, 0.03, -30.0)  # where that takes little time
LITTLE_S = 0.1
BESIDE = {torch.float64: 1e-6}  # what is used differs at both neighbours, what many are compared with at one of them
BESIDE_BELOW = 1e-3
APART = 64  # units in the last place that are rounding
RUNAWAY = 20  # times the operators without a change: a loop that waits for what a factor keeps away


class Change(NamedTuple):
    """A change of what is handed to Python.

    Attributes:
        factor: of a number; zero becomes factor - 1. Of the numbers that are read one after the other no two have the
            same, so that a ratio changes too.
        beside: the share by which it is more.
        is_flipped: whether true becomes false, and false true.
    """

    factor: float = 1.0
    beside: float = 0.0
    is_flipped: bool = False

    def of(self, x: Any, num: int) -> Any:
        """Returns a number or a tensor, changed as that which is read after `num` others."""
        power = 1 - 0.3 * (0.618 * num % 1)
        factor = (1 if self.factor > 0 else -1) * abs(self.factor) ** power * (1 + self.beside * power)
        if factor == 1:
            return x
        if isinstance(x, Tensor):
            return torch.where(x == 0, factor - 1, x * factor)
        return x * factor if x else factor - 1


class Flow(TorchDispatchMode):
    """Follows what depends on some leaves through what runs inside.

    Args:
        leaves: tensors that require a gradient.
        change: of what is handed to Python.
        most: operators.

    Attributes:
        reads: numbers that depend on them and were handed to Python.
        decisions: truth values likewise.
        num: operators that ran inside.
    """

    def __init__(self, leaves: Iterable[Tensor], change: Change | None = None, most: float = float("inf")) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads, self.decisions, self.num = 0, 0, 0
        self._change, self._most = change or Change(), most
        # depends on the leaves -> whether by way of a cut; of what an operator gives beside its first result, None
        self._moved: Any = WeakTensorKeyDictionary()
        for x in leaves:
            self._moved[x] = False
        self._functions, self._methods = _Functions(self), dict[str, Any]()

    def __enter__(self) -> "Flow":
        """Follows also what reads numbers without an operator; in a backward hook no mode of functions is active."""
        super().__enter__()  # type: ignore[no-untyped-call]
        self._functions.__enter__()  # type: ignore[no-untyped-call]
        for name in READERS:
            self._methods[name] = vars(Tensor).get(name)
            setattr(Tensor, name, self._reader(getattr(Tensor, name)))
        return self

    def __exit__(self, *of_error: Any) -> None:
        """Ends everything that `__enter__` began."""
        for name, own in self._methods.items():
            delattr(Tensor, name) if own is None else setattr(Tensor, name, own)
        self._functions.__exit__(*of_error)  # type: ignore[no-untyped-call]
        super().__exit__(*of_error)  # type: ignore[no-untyped-call]

    def _reader(self, method: Any) -> Any:
        return lambda x, *args, **kwargs: method(self.handed(x), *args, **kwargs)

    def is_cut(self, x: Tensor) -> bool:
        """Returns whether `x` depends on the leaves by a way that autograd does not see."""
        if x not in self._moved or not _is_continuous(x):
            return False
        through = self._moved[x]
        return bool(through) or (through is not None and not x.requires_grad)

    def depends(self, x: Tensor) -> bool:
        """Returns whether `x` depends on the leaves at all."""
        return bool(x in self._moved)

    def left(self, but: Sequence[Tensor]) -> list[Tensor]:
        """Returns the tensors that depend on the leaves and are still there, but those of `but`."""
        known = {id(x) for x in but}
        return [x for x in self._moved if id(x) not in known]

    def handed(self, x: Any) -> Any:
        """Returns what Python is handed in place of `x`."""
        if not isinstance(x, Tensor) or not self.depends(x) or not x.is_floating_point():
            return x
        self.reads += 1
        return self._change.of(x.detach(), self.reads - 1)

    def assigned(self, x: Tensor, data: Tensor) -> None:
        """Takes note that `x.data` was set to `data`, a way that autograd does not see."""
        if self.depends(data):
            self._moved[x] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operator, and notes what depends on the leaves after it.

        Raises:
            RuntimeError: more than `most` operators have run.
        """
        self.num += 1
        if self.num > self._most:
            raise RuntimeError(f"more than {self._most:.0f} operators")
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        depends = [x for x in given if x in self._moved and _is_continuous(x)]
        out = func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self._read(out, given[0])
        if not depends:
            if any(x in self._moved for x in given):  # of truth values others
                self._moved.update({x: None for x in tree_leaves(out) if _is_bool(x)})
            return out
        if _is_constant(func):
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

    def _read(self, out: Any, x: Tensor) -> Any:
        if x not in self._moved:
            return out
        if _is_bool(x):
            self.decisions += 1
            return not out if self._change.is_flipped else out
        if not _is_continuous(x):
            return out
        self.reads += 1
        return self._change.of(out, self.reads - 1)

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


def _is_bool(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bool


def _is_continuous(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _is_constant(func: Any) -> bool:
    """Whether it takes no values, or what it gives does not move with them."""
    name = func._schema.name.split("::")[1]
    return bool(name.endswith("_like") or name.startswith("new_") or name in CONSTANT)


class _Functions(TorchFunctionMode):
    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MAKERS and any(isinstance(x, list | tuple) for x in args):
            args = tuple(tree_map(self._flow.handed, x) if isinstance(x, list | tuple) else x for x in args)
        out = func(*args, **(kwargs or {}))
        if func == SET_DATA:
            self._flow.assigned(*args)
        return out


class Cuts:
    """What is cut in a function of leaves.

    Args:
        function: of the leaves, to tensors with their graphs; evaluated again for each change where it hands something
            that depends on the leaves to Python.
        leaves: where.
        values: the same without graphs, for a hook may be one that a graph does not take.

    Attributes:
        is_cut: whether a result depends on the leaves by a way that autograd does not see.
        uses_numbers: whether one depends on the value of a number that was handed to Python.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        leaves: Sequence[Tensor],
        values: Callable[..., Sequence[Tensor]] | None = None,
    ) -> None:
        self._leaves, self._most, self._values = leaves, float("inf"), values or function
        self._beside = BESIDE_BELOW if any(x.dtype not in BESIDE for x in leaves) else BESIDE[torch.float64]
        try:
            found, flow = self._evaluated(function, Change())
        except Exception:  # no second derivative, no memory for its graph: what can be cut may be
            self.is_cut, self.uses_numbers = True, False
            function = self._values
            try:
                found, flow = self._evaluated(function, Change())
            except Exception:
                return
        else:
            self.is_cut, self.uses_numbers = any(flow.is_cut(x) for x in found), False
        began_s = time.perf_counter()  # what the first evaluation loads is no part of it
        self._most = RUNAWAY * flow.num + 1000
        changes = [Change(factor) for factor in FACTORS] if flow.reads else []
        changes += [Change(is_flipped=True)] if flow.decisions else []
        for change in changes:
            self._explore(function, found, change)
        for factor in FINE if flow.reads else ():
            if time.perf_counter() - began_s > LITTLE_S:
                break
            self._explore(function, found, Change(factor))

    def _evaluated(self, function: Callable[..., Sequence[Tensor]], change: Change) -> tuple[Sequence[Tensor], Flow]:
        given = [x.detach().requires_grad_() for x in self._leaves]
        with torch.enable_grad(), Flow(given, change, self._most) as flow:
            return function(*given), flow

    def _explore(self, function: Callable[..., Sequence[Tensor]], found: Sequence[Tensor], change: Change) -> None:
        """What a change leads to; nothing where the function refuses what it reads."""
        if self.uses_numbers:
            return
        try:
            here, flow = self._evaluated(function, change)
            self.is_cut = self.is_cut or any(flow.is_cut(x) for x in here)
            if not flow.reads or (change != Change() and _are_same(found, here, 0)):
                return
            if self._values is not function:
                here = self._evaluated(self._values, change)[0]
            for beside in (self._beside, -self._beside):
                if _are_same(here, self._evaluated(self._values, change._replace(beside=beside))[0], APART):
                    return
        except Exception as error:
            if is_lacking(error):
                raise
            return
        self.uses_numbers = True


def _are_same(one: Sequence[Tensor], other: Sequence[Tensor], apart: int) -> bool:
    for x, y in zip(one, other, strict=True):
        x, y = x.detach(), y.detach()
        if bool(x.isnan().any()) or bool(y.isnan().any()) or not x.is_floating_point():
            continue
        slack = apart * torch.finfo(x.dtype).eps * x.abs().max() if x.numel() and apart else 0.0
        if bool(((x - y).abs() > slack).any()):
            return False
    return True
