"""A step of a run, compiled: by inductor on a CPU, by inductor into CUDA graphs on a GPU.

A step is compiled only if two batches give one list of operators with the same constants (`operators.py`). A number in
the batch may change if nothing reads it: when it first changes, the step is written down once more with something in
its place that cannot be read (`unreadable.py`). What is compiled is compared with the same step as torch runs it, once
for each set of shapes (`comparing.py`). Another problem with the same operators, such as the next outer step's, is
written down once and takes what is compiled.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from hyperopt_cli.errors import UsageError
from hyperopt_cli.program.comparing import check, drawn_like, moved
from hyperopt_cli.program.failures import first_line, named_as_of_compiling
from hyperopt_cli.program.operators import Operators, difference, same, written_down
from hyperopt_cli.program.unreadable import is_by_reading, unreadable
from hyperopt_cli.program.worth_compiling import expected_s

_LOG = logging.getLogger(__name__)
FROZEN = (
    "compile: the step is another computation at another batch: the loss reads a number of the batch that changes (an "
    "index, a size, the epoch); put tensors into it, or set compile: false"
)
UNSTEADY = (
    "compile: the step is another computation each time that it is written down, with the same numbers in its batch: "
    "something outside of the batch changes it, such as a counter"
)
NUMBERS = (bool, int, float, str)


class Compiled(NamedTuple):
    """What was made of a list of operators.

    Attributes:
        operators: whose.
        calls: the compiled functions.
        whole: all results, flat, from all arguments: what is compared with eager.
        partition: how it was divided, if it was.
    """

    operators: Operators
    calls: tuple[Callable[..., Any], ...]
    whole: Callable[..., list[Tensor]]
    partition: Any = None


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
    """Compiles a graph to a function of tensors, with a flat list of tensors of its own for a result."""
    on_gpu = any(x.is_cuda for x in tensors)
    # Inductor would lay convolutions out with channels last, where a group of two channels is two numbers in a row.
    options = {"triton.cudagraphs": True} if on_gpu else {"layout_optimization": False}
    with named_as_of_compiling("inductor"):
        made: Callable[..., Any] = torch._inductor.compile(graph, list[Any](tensors), options=options)
    if not on_gpu:
        return made
    return lambda *given: [x.clone() for x in made(*given)]  # the next call of a CUDA graph writes where this one did


class CompiledStep:
    """`function(batch, *trees) -> tree of tensors`, compiled once for each set of shapes.

    Args:
        linear: the index among `trees` of the one in which the function is linear, if there is one: compiled and eager
            are compared with random numbers in it, for at zeros, as at ones, much of the step cancels.
    """

    _build = staticmethod(compiled_by_inductor)

    def __init__(self, linear: int | None = None) -> None:
        self._linear = linear
        self._owner: Any = None
        self._function: Callable[..., Any] = _nothing
        self._made: dict[Any, Compiled] = {}
        self._of_this: dict[Any, Prepared] = {}

    def of(self, function: Callable[..., Any], owner: Any) -> "CompiledStep":
        """Returns itself, for `function` from now on.

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
        """Takes the step, compiled first if need be.

        Args:
            batch: of this step.
            others: batches of other steps; the first that looks like this one is compared with it.
            trees: whatever else the function takes.

        Raises:
            UsageError: the step cannot be compiled, with the reason.
            VerificationError: compiled, it gave something else.
        """
        with named_as_of_compiling("the compiled step"):
            _, tensors, prepared = self._at(batch, others, *trees)
            made = prepared.compiled.calls[0](*tensors, *prepared.operators.constants)
            return tree_unflatten(list(made), prepared.operators.results)

    def num_operators(self, batch: Any, *trees: Any) -> int:
        """Counts the operators that the step comes to, which compiling has to deal with."""
        with named_as_of_compiling("writing the step down"):
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
            unread |= self._unread(operators, numbers, _changed(numbers, alike), alike, spec)
        if (reason := cannot_compile()) is not None:
            raise UsageError(f"compile: torch cannot compile here ({reason}); install a C++ compiler")
        _LOG.info("compiling a step of %d operators: some %.0f s", len(operators), expected_s(len(operators)))
        leaves = self._for_comparison(leaves, spec)
        made = self._compile(operators, leaves, spec)
        num_fixed = len(tree_leaves(tree_unflatten(leaves, spec)[0]))  # of the batch

        def eager(generator: torch.Generator | None) -> list[Tensor]:
            given = leaves
            if generator is not None:
                given = [*leaves[:num_fixed], *(moved(x, generator) for x in leaves[num_fixed:])]
            return tree_leaves(self._function(*tree_unflatten(given, spec)))

        check(list(made.whole(*_tensors(leaves), *operators.constants)), eager)
        self._made[key] = made
        return Prepared(operators, made, numbers, unread)

    def _for_comparison(self, leaves: list[Any], spec: TreeSpec) -> list[Any]:
        """`leaves` with random numbers in what is linear."""
        if self._linear is None:
            return leaves
        batch, *trees = tree_unflatten(leaves, spec)
        trees[self._linear] = drawn_like(trees[self._linear])
        return tree_leaves((batch, *trees))

    def _compare(self, prepared: Prepared, leaves: list[Any], spec: TreeSpec) -> None:
        """Raises `UsageError` where what changed beside the tensors is read."""
        changed = _changed(prepared.numbers, leaves) - prepared.unread
        if changed:
            unread = self._unread(prepared.operators, prepared.numbers, changed, leaves, spec)
            prepared.unread.update(unread)

    def _unread(
        self, operators: Operators, numbers: list[Any], changed: set[int], leaves: list[Any], spec: TreeSpec
    ) -> set[int]:
        """`changed`, if without what stands there the step comes to the same operators.

        Raises:
            UsageError: it does not, for it reads what changed; or for another reason, which is told.
        """
        without = [unreadable(x) if i in changed else x for i, x in enumerate(leaves)]
        failure: Exception | None = None
        try:
            if same(operators, written_down(self._function, without, spec)):
                return changed
        except (UsageError, TypeError) as error:  # the latter where it has become a constant of the operators
            failure = error
        if not is_by_reading(failure):  # then whatever is wrong may be so with the old numbers too
            if failure is not None and isinstance(failure.__cause__, AssertionError):
                raise failure
            before = [numbers[i] if i in changed else x for i, x in enumerate(leaves)]
            again = written_down(self._function, before, spec)
            if not same(operators, again):
                raise UsageError(f"{UNSTEADY} ({difference(operators, again)}); set compile: false")
        raise UsageError(FROZEN)

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
    raise AssertionError("a CompiledStep has a function once `of` has been called")


_REASON: list[str | None] = []


def cannot_compile() -> str | None:
    """Says why torch cannot compile here, or None; a function of one addition is tried, once."""
    if not _REASON:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            torch.compile(_one_more, fullgraph=True)(torch.zeros(1))
        except Exception as error:
            _REASON.append(first_line(error))
        else:
            _REASON.append(None)
    return _REASON[0]


def _one_more(x: Tensor) -> Tensor:
    return x + 1
