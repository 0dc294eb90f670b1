"""Are the derivatives of what is cheap right: `init`, `schedule`, the update rule with its point and its result?

Each is a function of a few tensors, differentiated by torch: forward mode takes its Jacobian-vector product, a sweep
its vector-Jacobian product. A `no_grad`, a `.detach()`, a `.item()` inside gives a derivative of something else, and
nothing says so; central differences do. Where they confirm that of the list of operators instead, this one is taken;
where they do not count, both have to be the same. What ships with this package is held by its tests, and not examined.

What is cut is looked for at up to `MOST_STEPS` steps of the horizon, in later runs at others drawn by seed, from the
state after the first step, whose slots are not zero; differences are taken at a few. The direction moves a number in
proportion to its size, so that a second moment stays where it is defined.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hyperopt_cli.checks.differences import Difference, differenced, norm
from hyperopt_cli.checks.flow import Cuts
from hyperopt_cli.checks.replayed import terms
from hyperopt_cli.checks.truth import RIGHT, SLACK
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.sizes import size_of
from hyperopt_cli.errors import UsageError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.optimizers.base import InnerOptimizer
from hyperopt_cli.problem import Hyper
from hyperopt_cli.program import as_operators
from hyperopt_cli.program.raised import Raised, raised

MOST_STEPS, AGAIN, IN_FULL = 100, 20, 5  # at which cuts are looked for in a first run, in later ones; differences taken
FLOOR = 1e-11  # of what is moved
NUMBERS = "it depends on a number that leaves torch and comes back (item(), float(), numpy()), which has no derivative"
CURE = (
    "A detach(), item(), float() or no_grad in it makes a constant of what lambda or the state moves; write it with "
    "torch's differentiable operators"
)
Way = Literal["jvp", "vjp"]
Function = Callable[..., Any]  # of a tuple of trees of tensors, to a tree


class Rules(NamedTuple):
    """What was found for problems of one size.

    Attributes:
        as_operators: those of init, schedule, update, point and result that are differentiated as lists of operators.
        not_judged: those of which differences do not count, and two ways agree.
        looks: runs in which they were looked at.
    """

    as_operators: frozenset[str] = frozenset()
    not_judged: frozenset[str] = frozenset()
    looks: int = 0


def check_rule(dynamics: Dynamics, hyper: Hyper, way: Way, known: dict[str, Rules]) -> Rules:
    """Compares the derivative that a mode takes of each user's function with central differences, once for each size.

    Args:
        dynamics: of the run.
        hyper: lambda.
        way: jvp for forward mode, vjp for a sweep.
        known: what was found for problems of each size; this one's is added.

    Raises:
        UsageError: one is wrong by both ways, with its name and step.
    """
    size = repr(size_of(dynamics, hyper))
    before = known.get(size, Rules())
    as_lists, alone = set(before.as_operators), set(before.not_judged)
    with nullcontext() if dynamics.like.dtype == torch.float64 else Raised():
        for each in _functions(dynamics.watched_by(None), hyper, before.looks):
            examined = _Examined(each.function, raised(each.at))
            if examined.cuts.uses_numbers:
                raise UsageError(f"{each.what}: its derivative is not that of its value: {NUMBERS}. {CURE}")
            if each.part in as_lists or not (examined.cuts.is_cut or (before.looks == 0 and each.in_full)):
                continue
            # forward mode takes a schedule of few numbers by a pass backward for each (`modes/directions.py`)
            ways: tuple[Way, ...] = ("jvp", "vjp") if each.part == "schedule" else (way,)
            if examined.difference is None:
                examined.check_agreement(each.what, ways)
                alone.add(each.part)
            elif examined.cuts.is_cut or not examined.is_right_by_torch(ways):
                examined.check_list(each.what, ways)
                as_lists.add(each.part)
            if examined.cuts.is_cut:
                as_lists.add(each.part)
    known[size] = Rules(frozenset(as_lists), frozenset(alone), before.looks + 1)
    return known[size]


def not_judged(known: Mapping[str, Rules]) -> list[str]:
    """Says which derivatives could not be judged."""
    names = sorted({part for rules in known.values() for part in rules.not_judged})
    return [f"not judged: {', '.join(names)}, for differences do not count (kinks, rounding)"] if names else []


class _Part(NamedTuple):
    """A function that a user wrote, at a step.

    Attributes:
        part: which of the dynamics.
        what: its name in words.
        function, at: of trees of tensors, and where.
        in_full: whether differences are taken; else only what is cut in it is looked for.
    """

    part: str
    what: str
    function: Function
    at: tuple[Any, ...]
    in_full: bool


def _functions(dynamics: Dynamics, hyper: Hyper, looks: int) -> Iterator[_Part]:
    """Every function that a user wrote, at up to `MOST_STEPS` steps, in later runs at `AGAIN` drawn by seed."""
    problem, optimizer = dynamics.problem, dynamics.problem.optimizer
    if callable(problem.init) and _is_of_a_user(problem.init):
        yield _Part("init", "init", problem.initial, (hyper,), True)
    times = _drawn(problem.steps, looks) if looks else _spread(problem.steps, MOST_STEPS)
    full = set(_spread(problem.steps, IN_FULL))
    if problem.schedule is not None and _is_of_a_user(problem.schedule):
        for t in times:
            at_t = partial(_at_step, dynamics.plain_hyper_at, t)
            yield _Part("schedule", f"schedule at step {t}", at_t, (hyper,), t in full)
    if not _is_of_a_user(type(optimizer)):
        return
    step_hyper = dynamics.hyper_at(hyper, 0)
    point = dynamics.layout.unpack(dynamics.point(dynamics.start, step_hyper, 0))
    g = dynamics.layout.pack(gradient(next(terms(dynamics.loss_at(0))), point, step_hyper)[1])
    g = {key: x if bool(x.any()) else torch.ones_like(x) for key, x in g.items()}  # one of zero shows nothing
    state, name = dynamics.update(dynamics.start, g, step_hyper, 0), type(optimizer).__name__
    for t in times:
        at = dynamics.hyper_at(hyper, t)
        update, place = partial(_at_step, dynamics.update, t), partial(_at_step, dynamics.point, t)
        yield _Part("update", f"{name}.update at step {t}", update, (state, g, at), t in full)
        if not dynamics.point_is_state:
            yield _Part("point", f"{name}.gradient_at at step {t}", place, (state, at), t in full)
    if type(optimizer).result is not InnerOptimizer.result:
        yield _Part("result", f"{name}.result", dynamics.result, (state,), True)


def _at_step(function: Function, t: int, *trees: Any) -> Any:
    return function(*trees, t)


def _spread(steps: int, most: int) -> Sequence[int]:
    if steps <= most:
        return range(steps)
    return sorted({round(i * (steps - 1) / (most - 1)) for i in range(most)})


def _drawn(steps: int, seed: int) -> Sequence[int]:
    order = torch.randperm(steps, generator=torch.Generator().manual_seed(seed))
    return sorted(int(t) for t in order[:AGAIN])


def _is_of_a_user(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return not str(getattr(function, "__module__", "")).startswith("hyperopt_cli.")


class _Examined:
    """A function, a direction, and an adjoint along which its derivative is one number."""

    def __init__(self, function: Function, trees: tuple[Any, ...]) -> None:
        self._function, self._trees = function, trees
        self._leaves, self._spec = tree_flatten(trees)
        drawn = torch.Generator().manual_seed(len(self._leaves))
        self._direction = [_direction(x, drawn) for x in self._leaves]

    @cached_property
    def difference(self) -> Difference | None:
        """The derivative along the direction; None where differences do not count."""
        return differenced(self._flat(self._function), self._leaves, self._direction)

    @cached_property
    def _u(self) -> list[Tensor]:
        """The adjoint, in which every output weighs alike."""
        drawn = torch.Generator().manual_seed(len(self._leaves))
        like = self._flat(self._function)(*self._leaves) if self.difference is None else self.difference.value
        normal = [torch.randn(x.shape, generator=drawn, dtype=torch.float64).to(x.device) for x in like]
        if self.difference is None:
            return normal
        sizes = [norm([d]) for d in like]
        least = 1e-12 * max(sizes, default=0.0) or 1.0
        return [x / max(size, least) for x, size in zip(normal, sizes, strict=True)]

    def _flat(self, function: Function) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *tensors: tuple(tree_leaves(function(*tree_unflatten(list(tensors), self._spec))))

    @property
    def wanted(self) -> float:
        """What differences show of `u.(DF v)`."""
        assert self.difference is not None
        return _inner(self._u, self.difference.value)

    @cached_property
    def cuts(self) -> Cuts:
        """What is cut in it."""
        return Cuts(self._flat(self._function), self._leaves)

    @cached_property
    def listed(self) -> Function:
        """The function as a list of operators."""
        return as_operators(self._function, self._trees)

    def by_torch(self, way: Way) -> float:
        """The derivative as torch takes it."""
        return self._along(self._function, way)

    def by_list(self, way: Way) -> float:
        """The derivative of the function as a list of operators."""
        return self._along(self.listed, way)

    def _along(self, function: Function, way: Way) -> float:
        take = _pushed if way == "jvp" else _pulled
        try:
            return take(self._flat(function), self._leaves, self._direction, self._u)
        except (RuntimeError, NotImplementedError) as error:  # numpy under a forward derivative
            if is_lacking(error):
                raise
            return float("nan")

    def is_right(self, found: float) -> bool:
        """Whether differences confirm this value of `u.(DF v)`."""
        assert self.difference is not None
        parts = list(zip(self._u, self.difference.value, self.difference.errors, strict=True))
        size = max(sum(norm([u]) * norm([d]) for u, d, _ in parts), abs(found))
        open_ = sum(norm([u]) * SLACK * error for u, _, error in parts)
        return abs(found - self.wanted) <= RIGHT * size + open_

    def is_right_by_torch(self, ways: Sequence[Way]) -> bool:
        """Whether torch's own derivatives are."""
        return all(self.is_right(self.by_torch(way)) for way in ways)

    def check_list(self, what: str, ways: Sequence[Way]) -> None:
        """Raises `UsageError` where the derivative of the list is wrong too."""
        for way in ways:
            if not self.is_right(found := self.by_list(way)):
                raise UsageError(
                    f"{what}: its derivative is not that of its value: {found:.6g} along a direction, by central "
                    f"differences {self.wanted:.6g}. {CURE}"
                )

    def check_agreement(self, what: str, ways: Sequence[Way]) -> None:
        """Raises `UsageError` where two ways differ."""
        for way in ways:
            one, other = self.by_torch(way), self.by_list(way)
            if not abs(one - other) <= RIGHT * abs(other) + FLOOR * norm(self._leaves):
                raise UsageError(
                    f"{what}: two ways to take its derivative give {one:.6g} and {other:.6g} along a direction, and "
                    f"differences cannot judge it (kinks). {CURE}"
                )


def _pushed(function: Function, at: list[Tensor], direction: list[Tensor], u: list[Tensor]) -> float:
    return _inner(u, jvp(function, tuple(at), tuple(direction))[1])


def _pulled(function: Function, at: list[Tensor], direction: list[Tensor], u: list[Tensor]) -> float:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in at]
        pairs = [(y, a) for y, a in zip(function(*leaves), u, strict=True) if y.requires_grad]
    if not pairs:
        return 0.0
    grads = torch.autograd.grad([y for y, _ in pairs], leaves, [a for _, a in pairs], materialize_grads=True)
    return _inner(grads, direction)


def _direction(x: Tensor, drawn: torch.Generator) -> Tensor:
    """In proportion to each number, of norm one at the most; where it is zero, to the others.

    A second moment stays positive where the step is below its own size.
    """
    normal = torch.randn(x.shape, generator=drawn, dtype=torch.float64).to(x.device)
    size = float(torch.linalg.vector_norm(x.double()))
    mean = float(max(1, x.numel()) ** -0.5)
    return normal * (torch.where(x == 0, size * mean, x) / max(1.0, size) if size > 0 else mean)


def _inner(x: Sequence[Tensor], y: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(x, y, strict=True)))
