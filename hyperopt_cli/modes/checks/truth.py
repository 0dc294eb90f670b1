"""What central differences say of the training gradient at one step, and how far a candidate's product is from it.

    D = J v + M mu,      J = dg/dw,  M = dg/dlambda,  g the first-order gradient as training takes it

J is the Hessian only where g is the gradient of a scalar and autograd is not cut: a detach, a `no_grad`, a hook, a
backward of one's own make it what it is. A tangent is compared with D itself, a pullback by `u.D = (J^T u).v +
(M^T u).mu` for u of independent standard normal numbers, whose u.D is of the size of D.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from hyperopt_cli.modes.checks.differences import Difference, differenced, norm, reach
from hyperopt_cli.modes.checks.raised import Raised, raised, raising
from hyperopt_cli.modes.engines import ENGINES
from hyperopt_cli.modes.engines.base import Loss, Pullback, Tangents, gradient
from hyperopt_cli.modes.memory import is_lacking
from hyperopt_cli.optimizers.base import Params, StepHyper

PROGRAM = "program"  # the candidate that differentiates the list of operators
RIGHT = 1e-6  # relative error of a product in float64
SLACK = 5  # times what two differences are apart
ROUNDING = 1e-12  # of the gradient
# Below float64 an error that is no rounding: torch's own wrong derivatives are off by .09 to .4 and more.
GROSS = 0.3
LOW = 1e-3  # what two ways may be apart where nothing can be computed in float64
AWAY = 1e-3  # of the size of the weights

Push = Callable[[Loss, Params, StepHyper, Params, StepHyper, int | None], Tangents]
Pull = Callable[[Loss, Params, StepHyper], tuple[Tensor, Params, Pullback]]


@dataclass(frozen=True)
class Truth:
    """A step, a direction, and what differences show along it.

    Attributes:
        loss: of the step.
        params, hyper: where.
        v, mu: the direction in each, of norm about one over all parameters.
        gradient: g as training takes it, at that point, in float64.
        is_raised: whether what is below float64 is computed in it; some code refuses a mixture with its own constants.
    """

    loss: Loss
    params: Params
    hyper: StepHyper
    v: Params
    mu: StepHyper
    gradient: Params
    is_raised: bool = True

    @classmethod
    def at(cls, loss: Loss, params: Params, hyper: StepHyper, seed: int) -> "Truth":
        """At a point, or a little away where the gradient of a whole parameter is zero and would show nothing.

        Args:
            loss: of one batch.
            params: w.
            hyper: lambda_t.
            seed: of the direction.
        """
        drawn = torch.Generator().manual_seed(seed)
        is_raised = any(w.dtype != torch.float64 for w in params.values())
        try:
            params, plain = _awake(loss, params, hyper, drawn, is_raised)
        except (RuntimeError, ValueError, TypeError) as error:
            if is_lacking(error) or not is_raised:
                raise
            is_raised = False
            params, plain = _awake(loss, params, hyper, drawn, is_raised)
        scale = reach(list(params.values())) * sum(w.numel() for w in params.values()) ** -0.5
        v = {name: scale * _normal(w, drawn) for name, w in params.items()}
        mu = tree_map(lambda x: _normal(x, drawn) * torch.where(x == 0, 1.0, x.abs()) * x.numel() ** -0.5, hyper)
        return cls(loss, params, hyper, v, mu, plain, is_raised)

    @property
    def is_exact(self) -> bool:
        """Whether the run itself is in float64."""
        return all(x.dtype == torch.float64 for x in self.params.values())

    def raising(self) -> AbstractContextManager[Any]:
        """Where products are taken in float64."""
        return Raised() if self.is_raised else nullcontext()

    @property
    def near(self) -> float:
        """How far two products of one thing may be apart, of their size."""
        return RIGHT if self.is_raised or self.is_exact else LOW

    @cached_property
    def spec(self) -> TreeSpec:
        """Of (w, lambda), flat."""
        return tree_flatten((self.params, self.hyper))[1]

    @cached_property
    def difference(self) -> Difference | None:
        """D; None where it cannot be judged."""

        def field(*flat: Tensor) -> Sequence[Tensor]:
            w, h = tree_unflatten(list(flat), self.spec)
            return list(gradient(self.loss, w, h)[1].values())

        of_both = tree_leaves((self.params, self.hyper)), tree_leaves((self.v, self.mu))
        at, direction = raised(of_both) if self.is_raised else of_both
        try:
            with self.raising():
                return differenced(field, at, direction)
        except (RuntimeError, ValueError, TypeError, AssertionError):  # beside the point the loss may not be defined
            return None

    def pushed(self, engine: Push, at_once: int | None, own: bool = False) -> tuple[list[Tensor], Params]:
        """J v + M mu of an engine, and its gradient.

        Two columns are taken, the second a multiple of the first, that must not be mixed.

        Args:
            engine: the candidate.
            at_once: columns that the run treats at once, at most.
            own: in the precision of the run.
        """
        pair = torch.tensor([1.0, -0.5], dtype=torch.float64)
        rows = tree_map(lambda x: pair.to(x).view(2, *(1,) * x.ndim) * x, (self.v, self.mu))
        own = own or not self.is_raised
        given = (self.params, self.hyper, *rows) if own else raised((self.params, self.hyper, *rows))
        with nullcontext() if own else raising() if engine is ENGINES["folded"] else self.raising():
            w, h, w_dot, h_dot = given
            out = engine(self.loss, w, h, w_dot, h_dot, at_once if at_once == 1 else 2)
        first, second = ([x[i].double() for x in out.grad_tangents.values()] for i in (0, 1))
        mixed = norm([x + 2 * y for x, y in zip(first, second, strict=True)])
        wrong = mixed > (GROSS if own and not self.is_exact else RIGHT) * norm(first)
        return [x + float("nan") for x in first] if wrong else first, out.grads

    def pulled(self, pull: Pull, own: bool = False) -> tuple[float, list[Tensor]]:
        """(J^T u).v + (M^T u).mu of a pullback, and (J^T u, M^T u)."""
        own = own or not self.is_raised
        w, h = (self.params, self.hyper) if own else raised((self.params, self.hyper))
        with nullcontext() if own else self.raising():
            _, g, pullback = pull(self.loss, w, h)
            adjoints = [x.double() for x in tree_leaves(pullback({name: x.to(g[name]) for name, x in self.u.items()}))]
        along = tree_leaves((self.v, self.mu))
        return float(sum((x * d.double()).sum() for x, d in zip(adjoints, along, strict=True))), adjoints

    @cached_property
    def u(self) -> Params:
        """The adjoint, of independent normal numbers, such that every parameter weighs alike in u.D."""
        drawn = torch.Generator().manual_seed(len(self.params))
        normal = {name: _normal(w, drawn).double() for name, w in self.params.items()}
        return {name: k * x for k, (name, x) in zip(self._weights, normal.items(), strict=True)}

    @cached_property
    def _weights(self) -> list[float]:
        """1 / |D| of each parameter, as far as D is known to be more than rounding."""
        if self.difference is None:
            return [1.0] * len(self.params)
        least = max(1e-8 * self.difference.size, 1e-300)
        return [1 / max(norm([d]), SLACK * e, least) for d, e in self._pairs()]

    def _pairs(self) -> list[tuple[Tensor, float]]:
        assert self.difference is not None
        return list(zip(self.difference.value, self.difference.errors, strict=True))

    def error_of_push(self, product: Sequence[Tensor]) -> float:
        """Relative error beyond what the differences leave open; 0 where there is none."""
        assert self.difference is not None
        least = 1e-8 * self.difference.size
        figures = [
            _relative(norm([x - d]), max(norm([x]), norm([d]), least), SLACK * error + ROUNDING * norm([g]))
            for x, (d, error), g in zip(product, self._pairs(), self.gradient.values(), strict=True)
        ]
        return max(figures)

    def error_of_pull(self, along: float) -> float:
        """The same of a pullback."""
        assert self.difference is not None
        wanted = float(sum((self.u[name] * d).sum() for name, d in zip(self.u, self.difference.value, strict=True)))
        parts = list(zip(self._weights, self._pairs(), self.gradient.values(), strict=True))
        size = sum(k * norm([d]) for k, (d, _), _ in parts)
        open_ = sum(k * (SLACK * error + ROUNDING * norm([g])) for k, (_, error), g in parts)
        return _relative(abs(along - wanted), max(size, abs(along)), open_)

    def strayed(self, grads: Params) -> float:
        """How far an engine's gradient is from that of training, of its size."""
        plain = list(self.gradient.values())
        away = norm([x - y for x, y in zip(grads.values(), plain, strict=True)])
        return away / norm(plain) if norm(plain) > 0 else 0.0


def _relative(away: float, size: float, open_: float) -> float:
    """`away` over `size`; 0 where it is no more than the differences leave open."""
    if not away < float("inf"):
        return float("inf")
    return 0.0 if away <= open_ else away / size


def _normal(like: Tensor, drawn: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=drawn, dtype=torch.float64).to(like)


def _awake(
    loss: Loss, params: Params, hyper: StepHyper, drawn: torch.Generator, is_raised: bool
) -> tuple[Params, Params]:
    """The point and its gradient, or those a little away; a branch behind a scale of zero has none at the start."""

    def plain(w: Params) -> Params:
        with Raised() if is_raised else nullcontext():
            return gradient(loss, *(raised((w, hyper)) if is_raised else (w, hyper)))[1]

    here = plain(params)
    if all(bool((g != 0).any()) for g in here.values()):
        return params, here
    num = sum(w.numel() for w in params.values())
    size = AWAY * (norm(list(params.values())) * num**-0.5 or 1.0)
    moved = {name: w + size * _normal(w, drawn) for name, w in params.items()}
    there = plain(moved)
    return (moved, there) if all(bool(g.isfinite().all()) for g in there.values()) else (params, here)
