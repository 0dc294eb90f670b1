"""Are the derivatives of what is cheap right: `init`, `schedule`, the update rule with its point and its result?

Each is a function of a few tensors, differentiated by torch: forward mode takes its Jacobian-vector product, a sweep
its vector-Jacobian product. A `no_grad`, a `.detach()`, a `.item()` inside gives a derivative of something else, and
nothing says so; central differences do. Where they confirm that of the list of operators instead, this one is taken.
What ships with this package is held by its tests, and not examined.

Examined at up to `MOST_STEPS` steps of the horizon, from the state after the first step, whose slots are not zero. The
direction moves a number in proportion to its size, so that a second moment stays where it is defined.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import jvp
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.checks.differences import differenced, norm
from hyperopt_cli.modes.checks.raised import Raised, raised
from hyperopt_cli.modes.checks.replayed import terms
from hyperopt_cli.modes.checks.truth import RIGHT, SLACK
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.modes.engines.base import gradient
from hyperopt_cli.modes.memory import is_lacking
from hyperopt_cli.modes.program import as_operators
from hyperopt_cli.modes.sizes import size_of
from hyperopt_cli.optimizers.base import InnerOptimizer
from hyperopt_cli.problem import Hyper

MOST_STEPS = 100
Way = Literal["jvp", "vjp"]
Function = Callable[..., Any]  # of a tuple of trees of tensors, to a tree


def check_rule(dynamics: Dynamics, hyper: Hyper, way: Way, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """Compares the derivative that a mode takes of each user's function with central differences, once for each size.

    Args:
        dynamics: of the run.
        hyper: lambda.
        way: jvp for forward mode, vjp for a sweep.
        known: what was found for problems of each size; this one's is added.

    Returns:
        Those of init, schedule, update, point and result that are to be differentiated as lists of operators.

    Raises:
        UsageError: one is wrong by both ways, with its name and step.
    """
    size = repr(size_of(dynamics, hyper))
    if size not in known:
        exact = dynamics.like.dtype == torch.float64
        listed = set()
        for part, what, function, at in _functions(dynamics.watched_by(None), hyper):
            # forward mode takes a schedule of few numbers by a pass backward for each (`directions.py`)
            ways: tuple[Way, ...] = ("jvp", "vjp") if part == "schedule" else (way,)
            with nullcontext() if exact else Raised():
                if part not in listed and all(_misfit(function, at, each) is None for each in ways):
                    continue
                for each in ways:
                    if (misfit := _misfit(as_operators(function, raised(at)), at, each, function)) is not None:
                        raise _refusal(what, *misfit)
            listed.add(part)
        known[size] = frozenset(listed)
    return known[size]


def _functions(dynamics: Dynamics, hyper: Hyper) -> Iterator[tuple[str, str, Function, tuple[Any, ...]]]:
    """Every function that a user wrote: which part of the dynamics, its name in words, and where it is examined."""
    problem, optimizer = dynamics.problem, dynamics.problem.optimizer
    if callable(problem.init) and _is_of_a_user(problem.init):
        yield "init", "init", problem.initial, (hyper,)
    times = _spread(problem.steps)
    if problem.schedule is not None and _is_of_a_user(problem.schedule):
        for t in times:
            yield "schedule", f"schedule at step {t}", partial(_at_step, dynamics.plain_hyper_at, t), (hyper,)
    if not _is_of_a_user(type(optimizer)):
        return
    step_hyper = dynamics.hyper_at(hyper, 0)
    point = dynamics.layout.unpack(dynamics.point(dynamics.start, step_hyper, 0))
    g = dynamics.layout.pack(gradient(next(terms(dynamics.loss_at(0))), point, step_hyper)[1])
    state, name = dynamics.update(dynamics.start, g, step_hyper, 0), type(optimizer).__name__
    for t in times:
        at = dynamics.hyper_at(hyper, t)
        yield "update", f"{name}.update at step {t}", partial(_at_step, dynamics.update, t), (state, g, at)
        if not dynamics.point_is_state:
            yield "point", f"{name}.gradient_at at step {t}", partial(_at_step, dynamics.point, t), (state, at)
    if type(optimizer).result is not InnerOptimizer.result:
        yield "result", f"{name}.result", dynamics.result, (state,)


def _at_step(function: Function, t: int, *trees: Any) -> Any:
    return function(*trees, t)


def _spread(steps: int) -> Sequence[int]:
    if steps <= MOST_STEPS:
        return range(steps)
    return sorted({round(i * (steps - 1) / (MOST_STEPS - 1)) for i in range(MOST_STEPS)})


def _is_of_a_user(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return not str(getattr(function, "__module__", "")).startswith("hyperopt_cli.")


def _misfit(
    function: Function, trees: tuple[Any, ...], way: Way, values: Function | None = None
) -> tuple[float, float] | None:
    """What the derivative is along a direction, and what differences of `values` say; None where that is the same."""
    leaves, spec = tree_flatten(raised(trees))
    drawn = torch.Generator().manual_seed(len(leaves))
    direction = [_direction(x, drawn) for x in leaves]

    def flat(of: Function) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *tensors: tuple(tree_leaves(of(*tree_unflatten(list(tensors), spec))))

    difference = differenced(flat(values or function), leaves, direction)
    if difference is None:
        return None
    u = [torch.randn(x.shape, generator=drawn, dtype=torch.float64).to(x.device) for x in difference.value]
    wanted = _inner(u, difference.value)
    try:
        found = (_pushed if way == "jvp" else _pulled)(flat(function), leaves, direction, u)
    except (RuntimeError, NotImplementedError) as error:  # numpy under a forward derivative
        if is_lacking(error):
            raise
        found = float("nan")
    away, size = abs(found - wanted), max(difference.size, abs(found))
    floor = 1e-11 * norm(leaves)
    return None if away <= RIGHT * size + SLACK * difference.error * norm(u) + floor else (found, wanted)


def _refusal(what: str, found: float, wanted: float) -> UsageError:
    return UsageError(
        f"{what}: its derivative is not that of its value: {found:.6g} along a direction, by central differences "
        f"{wanted:.6g}. A detach(), item(), float() or no_grad in it makes a constant of what lambda or the state "
        "moves; write it with torch's differentiable operators"
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
    """In proportion to each number, of norm one at the most; where there is nothing but zeros, any.

    A second moment stays positive where the step is below its own size.
    """
    normal = torch.randn(x.shape, generator=drawn, dtype=torch.float64).to(x.device)
    size = float(torch.linalg.vector_norm(x.double()))
    return normal * x / max(1.0, size) if size > 0 else normal * max(1, x.numel()) ** -0.5


def _inner(x: Sequence[Tensor], y: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(x, y, strict=True)))
