"""What a loss keeps in Python from one evaluation to the next must not be a function of lambda or of the weights.

An anchor that is set at step 5, the best loss so far, a rate that is stored once: such a value is a constant to whoever
takes a step again, and it is none to the run. It is looked for where Python code keeps things: variables of closures,
globals, attributes of objects and classes, entries of lists and dictionaries. What has changed between the beginning
and the end of a hypergradient is moved a little. If the loss moves with it, the loss is evaluated at every step from
the beginning, at two sets of weights and of lambda. If the same is kept both times, it is what may be kept (a mask, a
count, a mean of the data); else the loss is refused. What is only logged costs a few evaluations.
"""

import sys
import types
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperopt_cli.errors import NonDeterministicError
from hyperopt_cli.modes.checks.replayed import leaves_of, slack, terms
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.problem import Hyper, Problem

MOST, LONG = 5000, 1000  # objects that are looked at, and entries of one
MOVED, STEPS, SEED = 1.01, 6, 31  # steps at which a use of what is kept is looked for
# Nothing that is kept is looked for in them; in the package itself, in what its functions and objects hold.
OWN, MODES = "hyperopt_cli", "hyperopt_cli.modes"
KNOWN = {"torch", "torchvision", "numpy", "PIL", "pydantic", "transformers", "typer", "yaml", MODES}
LIBRARIES = sys.stdlib_module_names | KNOWN
OF_MODULES = frozenset(vars(nn.Module())) - {"_buffers", "_modules"}
NOTHING = object()


class Place(NamedTuple):
    """Something that holds values under keys: a cell, a list, a dictionary, a class.

    Attributes:
        owner: it.
        name: what the user calls it.
        keys: the entries that count; None: all,
        but: except for these.
    """

    owner: Any
    name: str
    keys: frozenset[str] | None = None
    but: frozenset[str] = frozenset()

    def content(self) -> dict[Any, Any]:
        """The values by their keys."""
        if isinstance(self.owner, types.CellType):
            try:
                return {None: self.owner.cell_contents}
            except ValueError:  # not yet assigned
                return {}
        if isinstance(self.owner, list | deque):
            return dict(enumerate(self.owner))
        if isinstance(self.owner, type):
            return {key: x for key, x in vars(self.owner).items() if not (key.startswith("__") or callable(x))}
        counts = self.owner.keys() if self.keys is None else self.keys
        return {key: x for key, x in self.owner.items() if key in counts and key not in self.but}

    def put(self, content: dict[Any, Any]) -> None:
        """Holds these values, and no others."""
        now = self.content()
        if now.keys() == content.keys() and all(content[key] is x for key, x in now.items()):
            return
        if isinstance(self.owner, types.CellType):
            if content:
                self.owner.cell_contents = content[None]
            else:
                del self.owner.cell_contents
        elif isinstance(self.owner, list | deque):
            self.owner.clear()
            self.owner.extend(content.values())
        elif isinstance(self.owner, type):
            for key in now.keys() - content.keys():
                delattr(self.owner, key)
            for key, x in content.items():
                setattr(self.owner, key, x)
        else:
            for key in now.keys() - content.keys():
                del self.owner[key]
            self.owner.update(content)


Contents = list[tuple[Place, dict[Any, Any]]]
Changed = list[tuple[Place, list[Any]]]  # the keys of those that hold other numbers


class Remembered:
    """What the training loss of a problem keeps at the time of making."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._before: Contents = [(place, place.content()) for place in _places(problem.inner_loss)]

    def check(self, hyper: Hyper) -> None:
        """After a run.

        Args:
            hyper: lambda.

        Raises:
            NonDeterministicError: the loss takes for a constant what it has kept, and that is none.
        """
        after = [(place, place.content()) for place, _ in self._before]
        changed: Changed = []
        for (place, before), (_, now) in zip(self._before, after, strict=True):
            others = [key for key, x in now.items() if before.get(key, NOTHING) is not x]
            if keys := [key for key in others if next(_numbers(now[key]), None) is not None]:
                changed.append((place, keys))
        if not changed:
            return
        dynamics = Dynamics.of(self._problem, hyper)
        try:
            if self._is_used(dynamics, hyper, after, changed) and self._differs(dynamics, hyper, changed):
                names = ", ".join(dict.fromkeys(place.name or str(key) for place, keys in changed for key in keys))
                raise NonDeterministicError(
                    f"inner_loss: it keeps what depends on the weights of a step or on lambda ({names}), and takes it "
                    "for a constant when it is evaluated again (a teacher, an anchor, a cache); what it uses of other "
                    "steps has to be a parameter or a slot of the update rule"
                )
        finally:
            _put(after)

    def _is_used(self, dynamics: Dynamics, hyper: Hyper, after: Contents, changed: Changed) -> bool:
        """Whether the loss of some steps is another one where what is kept is another."""
        drawn = torch.randperm(dynamics.problem.steps, generator=torch.Generator().manual_seed(SEED))
        for t in sorted({0, dynamics.problem.steps - 1, *drawn[:STEPS].tolist()}):
            _put(after)
            plain = _value(dynamics, hyper, t)
            _put(after)
            for place, keys in changed:
                content = place.content()
                place.put(content | {key: _moved(content[key]) for key in keys})
            moved = _value(dynamics, hyper, t)
            if plain is not None and (moved is None or bool((moved - plain).abs() > slack(plain))):
                return True
        return False

    def _differs(self, dynamics: Dynamics, hyper: Hyper, changed: Changed) -> bool:
        """Whether other weights, from step 1 on, and another lambda leave something else behind."""
        left = []
        for factor in (1.0, MOVED):
            _put(self._before)
            moved = {name: factor * value for name, value in hyper.items()}
            for t in range(dynamics.problem.steps):
                _value(dynamics, moved, t, factor if t or callable(self._problem.init) else 1.0)
            contents = [(place.content(), keys) for place, keys in changed]
            left.append([x for content, keys in contents for key in keys for x in _numbers(content.get(key))])
        if len(left[0]) != len(left[1]):
            return True
        return any(
            x.shape != y.shape or bool(((x - y).abs() > slack(x)).any()) for x, y in zip(left[0], left[1], strict=True)
        )


def _put(contents: Contents) -> None:
    for place, content in contents:
        place.put(content)


def _value(dynamics: Dynamics, hyper: Hyper, t: int, factor: float = 1.0) -> Tensor | None:
    """L of the first term of step t, at s_0 times a factor; None where it raises."""
    try:
        step_hyper = dynamics.hyper_at(hyper, t)
        params = dynamics.layout.unpack(dynamics.point(dynamics.start, step_hyper, 0))
        with torch.enable_grad():
            w = leaves_of({name: factor * x for name, x in params.items()})
            value: Tensor = next(terms(dynamics.loss_at(t)))(w, step_hyper)
        return value.detach()
    except Exception:
        return None


def _numbers(x: Any) -> Iterator[Tensor]:
    """The floating-point numbers that something holds, but for those of objects in it."""
    if isinstance(x, Tensor):
        if x.is_floating_point():
            yield x.detach()
    elif isinstance(x, float):
        yield torch.tensor(x, dtype=torch.float64)
    elif type(x).__module__ == "numpy" and getattr(getattr(x, "dtype", None), "kind", "") == "f":
        yield torch.as_tensor(x)
    elif isinstance(x, list | tuple | deque):
        for each in x:
            yield from _numbers(each)
    elif isinstance(x, dict):
        yield from _numbers(list(x.values()))


def _moved(x: Any) -> Any:
    """The same with other numbers."""
    if isinstance(x, list | deque):
        return type(x)(_moved(each) for each in x)
    if isinstance(x, tuple):
        made = tuple(_moved(each) for each in x)
        return type(x)(*made) if hasattr(x, "_fields") else made
    if isinstance(x, dict):
        return {key: _moved(each) for key, each in x.items()}
    if next(_numbers(x), None) is None:
        return x
    return (x.detach() if isinstance(x, Tensor) else x) * MOVED + 1e-3


def _places(root: Any) -> list[Place]:
    """All that can be reached from a function and may hold something else later."""
    found: list[Place] = []
    seen: dict[int, Any] = {}  # kept alive, so that no other object has the id of one
    stack = [(root, "")]
    while stack and len(seen) < MOST:
        x, name = stack.pop()
        if id(x) in seen or isinstance(x, Tensor | str | bytes | int | float | types.ModuleType | types.CodeType):
            continue
        seen[id(x)] = x
        for place in _places_of(x, name):
            found.append(place)
            stack += [(each, place.name or str(key)) for key, each in place.content().items()]
        stack += [(each, name) for each in _parts_of(x)]
    return found


def _places_of(x: Any, name: str) -> Iterator[Place]:
    if isinstance(x, types.FunctionType):
        if _home(x) not in LIBRARIES:
            for variable, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
                yield Place(cell, variable)
            yield Place(x.__kwdefaults__ or {}, name)
            if _home(x) != OWN:
                yield Place(x.__globals__, "", _names(x.__code__))
    elif isinstance(x, list | deque | dict):
        if len(x) <= LONG:
            yield Place(x, name)
    elif isinstance(x, nn.Module):
        yield Place(vars(x), name, but=OF_MODULES)
    elif isinstance(x, type):
        if _home(x) not in LIBRARIES | {OWN}:
            yield Place(x, x.__name__)
    elif _home(type(x)) not in LIBRARIES and isinstance(getattr(x, "__dict__", None), dict):
        yield Place(vars(x), name)


def _parts_of(x: Any) -> Iterator[Any]:
    """What it holds that stays what it is."""
    if isinstance(x, partial):
        yield from (x.func, *x.args, x.keywords)
    elif isinstance(x, types.MethodType):
        yield from (x.__func__, x.__self__)
    elif isinstance(x, types.FunctionType):
        yield from x.__defaults__ or ()
    elif isinstance(x, tuple | set | frozenset) and len(x) <= LONG:
        yield from x
    elif isinstance(x, type):
        if _home(x) not in LIBRARIES | {OWN}:
            yield from (each for each in vars(x).values() if isinstance(each, types.FunctionType))
            yield from x.__bases__
    else:
        yield type(x)


def _names(code: types.CodeType) -> frozenset[str]:
    """Globals that a function may read or write, and those inside of it."""
    inner = [_names(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def _home(x: Any) -> str:
    """The package that a function or a class is of."""
    module = getattr(x, "__module__", None) or ""
    return MODES if module.startswith(MODES) else module.partition(".")[0]
