"""A step of a run, compiled: by inductor on a CPU, by inductor into CUDA graphs on a GPU.

A step is compiled only if two batches give one list of operators with the same constants (`operators.py`). A number in
the batch may change if nothing reads it: when it first changes, the step is written down once more with something in
its place that cannot be read (`unreadable.py`). What is compiled meets the same step as torch runs it, once for each
set of shapes. Another problem with the same operators, such as the next outer step's, is written down once and takes
what is compiled.
"""

import logging
import math
from collections.abc import Callable, Iterable
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.modes.compiling.operators import Operators, same, written_down
from hyperopt_cli.modes.compiling.repaying import expected_s
from hyperopt_cli.modes.compiling.unreadable import unreadable
from hyperopt_cli.modes.memory import is_lacking

_LOG = logging.getLogger(__name__)
# Relative to the norm of each result: compiled and eager round differently, and a network amplifies that.
AGREES = {torch.float64: 1e-9, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.2}


FROZEN = (
    "compile: the step is another computation at another batch: the loss reads a number of the batch that changes (an "
    "index, a size, the epoch); put tensors into it, or set compile: false"
)
NUMBERS = (bool, int, float, str)


class Compiled(NamedTuple):
    """What was made of a list of operators.

    Attributes:
        operators: whose.
        calls: the compiled functions.
        whole: all results, flat, from all arguments: what is compared with eager.
        halves: how it was divided, if it was.
    """

    operators: Operators
    calls: tuple[Callable[..., Any], ...]
    whole: Callable[..., list[Tensor]]
    halves: Any = None


class Prepared(NamedTuple):
    """A step of this problem.

    Attributes:
        operators: it comes to these, with this problem's constants,
        compiled: for which this was made,
        numbers: where its arguments, flattened, were these beside tensors (None in place of those);
        unread: at these places they may be others.
    """

    operators: Operators
    compiled: Compiled
    numbers: list[Any]
    unread: set[int]


def compiled_by_inductor(graph: fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any]:
    """A function of tensors to a flat list of tensors of its own."""
    on_gpu = any(x.is_cuda for x in tensors)
    # Inductor would lay convolutions out with channels last, where a group of two channels is two numbers in a row.
    options = {"triton.cudagraphs": True} if on_gpu else {"layout_optimization": False}
    try:
        made: Callable[..., Any] = torch._inductor.compile(graph, list[Any](tensors), options=options)
    except Exception as error:
        if is_lacking(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"compile: inductor failed ({shorten(reason, 200)}); set compile: false") from error
    if not on_gpu:
        return made
    return lambda *given: [x.clone() for x in made(*given)]  # the next call of a CUDA graph writes where this one did


class WholeStep:
    """`function(batch, *trees) -> tree of tensors`, compiled once for each set of shapes."""

    _build = staticmethod(compiled_by_inductor)

    def __init__(self) -> None:
        self._owner: Any = None
        self._function: Callable[..., Any] = _nothing
        self._made: dict[Any, Compiled] = {}
        self._of_this: dict[Any, Prepared] = {}

    def of(self, function: Callable[..., Any], owner: Any) -> "WholeStep":
        """Itself, for `function` from now on.

        Args:
            function: pure; every tensor that changes from step to step is in `batch` or `trees`.
            owner: whose step it is; of another one than before it is written down again, and compiled only if it comes
                to other operators.
        """
        if owner is not self._owner:
            self._owner = owner
            self._of_this.clear()
        self._function = function  # of one owner they differ by the keys of lambda, and so by the trees they are given
        return self

    def __call__(self, batch: Any, others: Iterable[Any], *trees: Any) -> Any:
        """The step, compiled first if need be.

        Args:
            batch: of this step.
            others: batches of other steps; the first that looks like this one is compared with it.
            trees: whatever else the function takes.

        Raises:
            UsageError: the step cannot be compiled, with the reason.
            VerificationError: compiled, it gave something else.
        """
        _, tensors, prepared = self._at(batch, others, *trees)
        made = prepared.compiled.calls[0](*tensors, *prepared.operators.constants)
        return tree_unflatten(list(made), prepared.operators.results)

    def num_operators(self, batch: Any, *trees: Any) -> int:
        """Of the step: what compiling has to do with."""
        return len(written_down(self._function, *tree_flatten((batch, *trees))))

    def _at(self, batch: Any, others: Iterable[Any], *trees: Any) -> tuple[Any, list[Tensor], Prepared]:
        """What is compiled for these shapes, its name, and the tensors among the arguments."""
        leaves, spec = tree_flatten((batch, *trees))
        key = _key(leaves, spec)
        if key not in self._of_this:
            self._of_this[key] = self._prepared(key, leaves, spec, others, trees)
        prepared = self._of_this[key]
        self._compare(prepared, leaves, spec)
        return key, _tensors(leaves), prepared

    def _prepared(
        self, key: Any, leaves: list[Any], spec: TreeSpec, others: Iterable[Any], trees: tuple[Any, ...]
    ) -> Prepared:
        operators, numbers = written_down(self._function, leaves, spec), _numbers(leaves)
        made = self._made.get(key)
        if made is not None and same(operators, made.operators, with_constants=False):
            return Prepared(operators, made, numbers, set())
        unread: set[int] = set()
        flattened = (tree_flatten((other, *trees)) for other in others)
        alike = next((other for other, other_spec in flattened if _key(other, other_spec) == key), None)
        if alike is not None:
            unread |= self._unread(operators, _changed(numbers, alike), alike, spec)
        if (reason := cannot_compile()) is not None:
            raise UsageError(f"compile: torch cannot compile here ({reason}); install a C++ compiler")
        _LOG.info("compiling a step of %d operators: some %.0f s", len(operators), expected_s(len(operators)))
        made = self._compile(operators, leaves, spec)
        eager = self._function(*tree_unflatten(leaves, spec))
        _check(list(made.whole(*_tensors(leaves), *operators.constants)), tree_flatten(eager)[0])
        self._made[key] = made
        return Prepared(operators, made, numbers, unread)

    def _compare(self, prepared: Prepared, leaves: list[Any], spec: TreeSpec) -> None:
        """Raises `UsageError` where what changed beside the tensors is read."""
        changed = _changed(prepared.numbers, leaves) - prepared.unread
        if changed:
            prepared.unread.update(self._unread(prepared.operators, changed, leaves, spec))

    def _unread(self, operators: Operators, changed: set[int], leaves: list[Any], spec: TreeSpec) -> set[int]:
        """`changed`, if without what stands there the step comes to the same operators."""
        without = [unreadable(x) if i in changed else x for i, x in enumerate(leaves)]
        try:
            alike = same(operators, written_down(self._function, without, spec))
        except (UsageError, TypeError):  # the latter where it has become a constant of the operators
            alike = False
        if not alike:
            raise UsageError(FROZEN)
        return changed

    def _compile(self, operators: Operators, leaves: list[Any], spec: TreeSpec) -> Compiled:
        """As one function."""
        tensors = _tensors(leaves)
        call = self._build(operators.graph, tensors + operators.constants)
        return Compiled(operators, (call,), call)


def _key(leaves: list[Any], spec: TreeSpec) -> Any:
    """What a compiled step is for: shapes, what `is` can tell apart, and the precision of float32 products."""
    on_gpu: Any = torch.backends.cuda
    shapes = tuple((x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in _tensors(leaves))
    kinds = tuple(x if isinstance(x, bool) else type(x) for x in leaves)
    return spec, shapes, kinds, on_gpu.matmul.fp32_precision


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [x for x in leaves if isinstance(x, Tensor)]


def _numbers(leaves: list[Any]) -> list[Any]:
    for x in leaves:
        if x is not None and not isinstance(x, (Tensor, *NUMBERS)):
            raise UsageError(
                f"compile: the step takes a batch that holds a {type(x).__name__}, into which nobody can look; give "
                "tensors and numbers in tuples, lists and dictionaries"
            )
    return [None if isinstance(x, Tensor) else x for x in leaves]


def _changed(numbers: list[Any], leaves: list[Any]) -> set[int]:
    pairs = enumerate(zip(_numbers(leaves), numbers, strict=True))
    return {i for i, (x, y) in pairs if type(x) is not type(y) or x != y}


def _nothing(*arguments: Any) -> Any:
    raise AssertionError("a WholeStep has a function once `of` has been called")


def _check(compiled: list[Tensor], eager: list[Tensor]) -> None:
    slack = max(AGREES[y.dtype] for y in eager if y.dtype in AGREES)  # a float64 scalar may be a sum of float32
    sizes = [float(torch.linalg.vector_norm(y.double())) for y in eager]
    rounding = slack**2 * max((size for size in sizes if math.isfinite(size)), default=0.0)  # of what should be zero
    for x, y, size in zip(compiled, eager, sizes, strict=True):
        difference = float(torch.linalg.vector_norm((x - y).double()))
        if math.isfinite(size) and not difference <= slack * size + rounding:
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
