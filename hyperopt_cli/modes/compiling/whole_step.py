"""A step of a run, compiled: by inductor on a CPU, by inductor into CUDA graphs on a GPU.

A step is compiled only if two batches give one list of operators with the same constants (`operators.py`); what is
compiled meets the same step as torch runs it, once for each set of shapes. Another problem with the same operators,
such as the next outer step's, is written down once and takes what is compiled.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.modes.compiling.operators import Operators, same, written_down

# Relative to the norm of each result: compiled and eager round differently, and a network amplifies that.
AGREES = {torch.float64: 1e-9, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.2}


class _Compiled(NamedTuple):
    operators: Operators
    call: Callable[..., Any]


class WholeStep:
    """`function(batch, *trees) -> tree of tensors`, compiled once for each set of shapes."""

    def __init__(self) -> None:
        self._owner: Any = None
        self._function: Callable[..., Any] = _nothing
        self._made: dict[Any, _Compiled] = {}
        self._of_this: dict[Any, Operators] = {}

    def of(self, function: Callable[..., Any], owner: Any) -> "WholeStep":
        """Itself, for `function` from now on.

        Args:
            function: pure; every tensor that changes from step to step is in `batch` or `trees`.
            owner: whose step it is; of another one than before it is written down again, and compiled only if it comes
                to other operators.
        """
        if owner is not self._owner:
            self._owner, self._function = owner, function
            self._of_this.clear()
        return self

    def __call__(self, batch: Any, another: Callable[[], Any], *trees: Any) -> Any:
        """The step, compiled first if need be.

        Args:
            batch: of this step.
            another: the batch of another step.
            trees: whatever else the function takes.

        Raises:
            UsageError: the step cannot be compiled, with the reason.
            VerificationError: compiled, it gave something else.
        """
        leaves, spec = tree_flatten((batch, *trees))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        key = (spec, tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors))
        if key not in self._of_this:
            self._of_this[key] = self._prepared(key, leaves, spec, another, trees)
        operators = self._of_this[key]
        return tree_unflatten(list(self._made[key].call(*tensors, *operators.constants)), operators.results)

    def num_operators(self, batch: Any, *trees: Any) -> int:
        """Of the step: what compiling has to do with."""
        return len(written_down(self._function, *tree_flatten((batch, *trees))))

    def _prepared(
        self, key: Any, leaves: list[Any], spec: TreeSpec, another: Callable[[], Any], trees: tuple[Any, ...]
    ) -> Operators:
        operators = written_down(self._function, leaves, spec)
        if key in self._made and same(operators, self._made[key].operators, with_constants=False):
            return operators
        other_leaves, other_spec = tree_flatten((another(), *trees))
        if other_spec == spec and not same(operators, written_down(self._function, other_leaves, spec)):
            raise UsageError(
                "compile: the step is another computation at another batch: the loss takes a number (an index, a "
                "seed, a size) from the batch; put tensors into it"
            )
        if (reason := cannot_compile()) is not None:
            raise UsageError(f"compile: torch cannot compile here ({reason}); install a C++ compiler")
        tensors = [x for x in leaves if isinstance(x, Tensor)] + operators.constants
        compiled = _compiled(operators, tensors)
        eager = self._function(*tree_unflatten(leaves, spec))
        _check(list(compiled(*tensors)), tree_flatten(eager)[0])
        self._made[key] = _Compiled(operators, compiled)
        return operators


def _nothing(*arguments: Any) -> Any:
    raise AssertionError("a WholeStep has a function once `of` has been called")


def _compiled(operators: Operators, tensors: list[Tensor]) -> Callable[..., Any]:
    on_gpu = any(x.is_cuda for x in tensors)
    # Inductor would lay convolutions out with channels last, where a group of two channels is two numbers in a row.
    options = {"triton.cudagraphs": True} if on_gpu else {"layout_optimization": False}
    try:
        made: Callable[..., Any] = torch._inductor.compile(operators.graph, list[Any](tensors), options=options)
    except Exception as error:
        raise UsageError(f"compile: inductor failed ({str(error).strip().splitlines()[0]})") from error
    return made


def _check(compiled: list[Tensor], eager: list[Tensor]) -> None:
    slack = max(AGREES[y.dtype] for y in eager if y.dtype in AGREES)  # a float64 scalar may be a sum of float32
    for x, y in zip(compiled, eager, strict=True):
        size = float(torch.linalg.vector_norm(y.double()))
        difference = float(torch.linalg.vector_norm((x - y).double()))
        if math.isfinite(size) and not difference <= slack * size:
            raise VerificationError(
                f"compile: the compiled step differs from the same step as torch runs it by {difference:.1e}, of "
                f"{size:.1e}; set compile: false"
            )


_REASON: list[str | None] = []


def cannot_compile() -> str | None:
    """Why torch cannot compile here, or None; a function of one addition is tried, once."""
    if not _REASON:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            torch.compile(_one_more, fullgraph=True)(torch.zeros(1))
        except Exception as error:
            _REASON.append(str(error).strip().splitlines()[0])
        else:
            _REASON.append(None)
    return _REASON[0]


def _one_more(x: Tensor) -> Tensor:
    return x + 1
