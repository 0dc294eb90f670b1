"""A computation on tensors, written down while it runs: every operator below autograd, in order.

It is written down anew for each step: an integer of the batch, a branch, a seed, a counter are then those of that step,
and nothing of Python is frozen from one step to the next. What an operator draws at random is kept, so that a replay
has the draws of the step.

What the list does not see is a value that leaves torch and comes back: `.item()`, numpy. Such a value is a number in
the list, so that its derivative is lost; whether it matters is found out in `checks/flow.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from hyperopt_cli.program.aliases import functional, is_view, memory_of, written_arguments
from hyperopt_cli.program.rules import DRAWING

aten = torch.ops.aten
# What no more than renames its argument below autograd; `aten.detach` would cut a derivative of the list.
ITSELF = frozenset({aten.detach.default, aten.alias.default, aten.lift_fresh.default})


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the list by its number."""

    index: int


class Call(NamedTuple):
    """One operator.

    Attributes:
        func: an operator of the dispatcher.
        args, kwargs: with a `Ref` for each tensor.
        results: the numbers of its results, flat; None for what is no tensor.
        drawn: what it gave, for an operator that draws at random; None of any other.
    """

    func: Any
    args: Any
    kwargs: Any
    results: tuple[int | None, ...]
    drawn: Any = None

    @property
    def read(self) -> list[Ref]:
        """The values that the operator reads."""
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Ref)]


@dataclass
class Program:
    """A function of `num_inputs` tensors as a list of operators.

    Attributes:
        num_inputs: the values 0 ... num_inputs - 1.
        calls: the operators, in order.
        constants: tensors that are reached beside the inputs, by their number.
        outputs: what it returns.
    """

    num_inputs: int
    calls: list[Call] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    outputs: list[Ref] = field(default_factory=list)

    def replay(self, inputs: Sequence[Tensor], call: Callable[[Call, Any, Any], Any] | None = None) -> list[Tensor]:
        """Returns the outputs at `inputs`.

        Args:
            inputs: like those that it was written down with.
            call: evaluates one operator on its arguments; None: as it stands.
        """
        values: dict[int, Any] = {**self.constants, **dict(enumerate(inputs))}
        evaluate = call or _as_it_stands
        dead = self._last_uses()
        for i, each in enumerate(self.calls):
            args, kwargs = tree_map(lambda x: values[x.index] if isinstance(x, Ref) else x, (each.args, each.kwargs))
            results = tree_leaves(evaluate(each, args, kwargs))
            del args, kwargs
            values.update({n: x for n, x in zip(each.results, results, strict=True) if n is not None})
            for n in dead.get(i, ()):
                values.pop(n, None)
        return [values[ref.index] for ref in self.outputs]

    def _last_uses(self) -> dict[int, list[int]]:
        """By the position of a call, the values that nothing reads after it."""
        last: dict[int, int] = {}
        for i, each in enumerate(self.calls):
            last |= dict.fromkeys(_numbers(each.results), i)
            last |= dict.fromkeys((ref.index for ref in each.read), i)
        kept = {ref.index for ref in self.outputs}
        ends: dict[int, list[int]] = {}
        for n, i in last.items():
            if n not in kept:
                ends.setdefault(i, []).append(n)
        return ends


def recorded(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> tuple[Program, list[Tensor]]:
    """Evaluates `function(*inputs)` and writes down its operators, without any that write into a tensor.

    Args:
        function: of tensors, to tensors; it may differentiate inside.
        inputs: distinct tensors.

    Returns:
        The program, and what the function returned, with the bits that it has without being written down.
    """
    with _Recorder(inputs) as recorder:
        results = list(function(*inputs))
        recorder.program.outputs = [recorder.reference(x) for x in results]
    program = recorder.program
    if any(written_arguments(each.func) for each in program.calls):
        program = _without_writes(program, inputs)
    return program, results


def _without_writes(program: Program, inputs: Sequence[Tensor]) -> Program:
    """The same with operators in place by their counterparts; by torch's functionalisation where views are written."""
    if (plain := _rebound(program)) is not None:
        return plain
    given = [x.detach() for x in inputs]
    targets = {x.index for each in program.calls for x in _written(each) if isinstance(x, Ref)}
    constants = [x.clone() if n in targets else x for n, x in program.constants.items()]  # written back into

    def replayed(*tensors: Tensor) -> list[Tensor]:
        held = dict(zip(program.constants, tensors[len(given) :], strict=True))
        again = Program(program.num_inputs, program.calls, held, program.outputs)
        return again.replay(tensors[: len(given)], _of_its_draws)

    with torch.no_grad(), _Recorder([*given, *constants]) as recorder:
        results = torch.func.functionalize(replayed, remove="mutations")(*given, *constants)
        outputs = [recorder.reference(x) for x in results]
    made = recorder.program
    renamed = {len(given) + i: x for i, x in enumerate(program.constants.values())}
    calls = [each for each in made.calls if not written_arguments(each.func)]  # without the last writes into constants
    return Program(len(given), calls, {**made.constants, **renamed}, outputs)


def _written(call: Call) -> list[Any]:
    return [call.args[i] for i in written_arguments(call.func) if i < len(call.args)]


def _rebound(program: Program) -> Program | None:
    """With `x = f(x)` for `f_(x)`, which is the same where nothing else lies in the memory of x; None elsewhere."""
    shared: set[int] = set()
    for each in program.calls:
        if is_view(each.func):
            shared |= {ref.index for ref in each.read} | _numbers(each.results)
    calls = []
    for each in program.calls:
        written = written_arguments(each.func)
        if not written:
            calls.append(each)
            continue
        plain = functional(each.func)
        target = each.args[0] if each.args else None
        if plain is None or written != (0,) or not isinstance(target, Ref):
            return None
        if target.index in shared or target.index < program.num_inputs or target.index in program.constants:
            return None
        calls.append(each._replace(func=plain))
    return Program(program.num_inputs, calls, program.constants, program.outputs)


def _of_its_draws(call: Call, args: Any, kwargs: Any) -> Any:
    """A result that depends on its arguments beside what was drawn goes on depending on them."""
    if call.drawn is not None and call.func in DRAWING:
        return DRAWING[call.func](call.drawn, *args, **kwargs)
    return _as_it_stands(call, args, kwargs)


def _as_it_stands(call: Call, args: Any, kwargs: Any) -> Any:
    if call.drawn is None:
        return call.func(*args, **kwargs)
    return args[0].copy_(call.drawn) if written_arguments(call.func) else call.drawn


def _numbers(results: Iterable[int | None]) -> set[int]:
    return {n for n in results if n is not None}


class _Recorder(TorchDispatchMode):
    """Writes down what runs inside.

    Tensors are known as long as they live, not longer: the memory of a step is what it is without being written down.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.program = Program(len(inputs))
        self._known: Any = WeakTensorKeyDictionary()
        self._num = 0
        for x in inputs:
            self._number(x)

    def reference(self, x: Tensor) -> Ref:
        """Its number; a constant's, where nothing that was written down made it."""
        index = self._known.get(x)
        if index is None:
            index = self._number(x)
            self.program.constants[index] = x.detach()
        return Ref(index)

    def _keep(self, written: Tensor) -> None:
        """A constant as it was, before an operator writes into its memory."""
        memory = memory_of(written)
        for index, x in self.program.constants.items():
            if memory_of(x) == memory:
                self.program.constants[index] = x.clone()

    def _number(self, x: Tensor) -> int:
        self._known[x] = self._num
        self._num += 1
        return self._num - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator, written down."""
        kwargs = kwargs or {}
        refs, named = tree_map(lambda x: self.reference(x) if isinstance(x, Tensor) else x, (args, kwargs))
        # these write their slopes beside their result
        if func in (aten.rrelu_with_noise.default, aten.rrelu_with_noise_.default):
            out = func(*args, **kwargs)
            slopes = out.detach().clone(), args[1].detach().clone()
            numbers = self._number(out), self._number(args[1])
            self.program.calls.append(Call(aten.rrelu_with_noise_functional.default, refs, named, numbers, slopes))
            return out
        for i in written_arguments(func):
            if i < len(args) and isinstance(args[i], Tensor):
                self._keep(args[i])
        out = func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return out
        results = tuple(self._result(x) if isinstance(x, Tensor) else None for x in tree_leaves(out))
        drawn: Any = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            drawn = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, out)
        self.program.calls.append(Call(func, refs, named, results, drawn))
        return out

    def _result(self, x: Tensor) -> int:
        known = self._known.get(x)
        return self._number(x) if known is None else known
