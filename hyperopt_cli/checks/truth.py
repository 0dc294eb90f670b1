"""What central differences say of the training gradient at one step, and how far a candidate's product is from it.

    J v  and  M mu,      J = dg/dw,  M = dg/dlambda,  g the first-order gradient as training takes it

J is the Hessian only where g is the gradient of a scalar and autograd is not cut: a detach, a `no_grad`, a hook, a
backward of one's own make it what it is. A tangent is compared with J v itself, a pullback by `u.(J v) = (J^T u).v`
for u of independent standard normal numbers. Each hyperparameter of the loss has a direction of its own, so that a
penalty of 1e-7 does not hide behind the curvature.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hyperopt_cli.checks.decisions import Decisions
from hyperopt_cli.checks.differences import Difference, decisions_of, differenced, norm, reach
from hyperopt_cli.checks.flow import Cuts
from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import Pullback, gradient
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.engines.base import Engine
from hyperopt_cli.errors import UsageError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.program.raised import Raised, raised, raising

PROGRAM = "program"  # the candidate that differentiates the list of operators
RIGHT = 1e-6  # relative error of a product in float64
SLACK = 5  # times what two differences are apart
ROUNDING = 1e-12  # of the gradient
OWN_ROUNDING = 16  # units in the last place of the run's own format
# Below float64 an error that is no rounding: torch's own wrong derivatives are off by .09 to .4 and more.
GROSS = 0.3
LOW = 1e-3  # what two ways may be apart where nothing can be computed in float64
MOST_GROUPS = 4  # of hyperparameters, each with a direction of its own
AWAY = 1e-3  # of the size of the weights

Pull = Callable[[Loss, Params, StepHyper], tuple[Tensor, Params, Pullback]]


class Column(NamedTuple):
    """A direction and what differences show along it.

    Attributes:
        v, mu: in w and in lambda; one of them is zero.
        difference: J v or M mu; None where it cannot be judged.
    """

    v: Params
    mu: StepHyper
    difference: Difference | None


@dataclass(frozen=True)
class Truth:
    """A step, and what differences show there.

    Attributes:
        loss: of the step.
        params, hyper: where.
        v: the direction in w, of norm about one over all parameters.
        gradient: g as training takes it, at that point, in float64.
        is_raised: whether what is below float64 is computed in it; some code refuses a mixture with its own constants.
    """

    loss: Loss
    params: Params
    hyper: StepHyper
    v: Params
    gradient: Params
    is_raised: bool = True

    @classmethod
    def at(cls, loss: Loss, params: Params, hyper: StepHyper, seed: int) -> "Truth":
        """Takes a step's point, or one a little away where the gradient of a whole parameter is zero and shows nothing.

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
        except Exception as error:
            if is_lacking(error) or not is_raised:
                raise
            is_raised = False
            params, plain = _awake(loss, params, hyper, drawn, is_raised)
        scale = reach(list(params.values())) * sum(w.numel() for w in params.values()) ** -0.5
        v = {name: scale * _normal(w, drawn) for name, w in params.items()}
        return cls(loss, params, hyper, v, plain, is_raised)

    @property
    def is_exact(self) -> bool:
        """Whether the run itself is in float64."""
        return all(x.dtype == torch.float64 for x in self.params.values())

    def raising(self) -> AbstractContextManager[Any]:
        """Returns a context in which the step is computed in float64, if `is_raised`; else one that changes nothing."""
        return Raised() if self.is_raised else nullcontext()

    @property
    def near(self) -> float:
        """How far two products of one thing may be apart, of their size."""
        return RIGHT if self.is_raised or self.is_exact else LOW

    @cached_property
    def cuts(self) -> Cuts:
        """What is cut in the training gradient, as a function of w and lambda."""
        return cuts_of(self.loss, self.params, self.hyper)

    def check_numbers(self, where: str) -> None:
        """Refuses a number that was handed to Python and moves the training gradient: it has no derivative.

        Raises:
            UsageError: one does.
        """
        if self.cuts.uses_numbers:
            raise UsageError(
                f"inner_loss: its gradient at {where} depends on a number that leaves torch and comes back (item(), "
                "float(), numpy()), which has no derivative; keep it a tensor: torch.where, "
                "minimum and clamp take the place of Python's"
            )

    @property
    def judges(self) -> bool:
        """Whether differences count along all directions."""
        return all(column.difference is not None for column in self.columns)

    @cached_property
    def columns(self) -> list[Column]:
        """The direction in w, then one for each hyperparameter, of many one for each of `MOST_GROUPS` groups."""
        at, spec = tree_flatten((self.params, self.hyper))
        at = raised(at) if self.is_raised else at
        num = len(self.params)
        here: Decisions | None = None

        def field(*flat: Tensor) -> Sequence[Tensor]:
            w, h = tree_unflatten(list(flat), spec)
            return list(gradient(self.loss, w, h)[1].values())

        def column(direction: list[Tensor]) -> Column:
            nonlocal here
            v, mu = tree_unflatten(direction, spec)
            along = raised(direction) if self.is_raised else direction
            try:
                with self.raising():
                    here = here or decisions_of(field, at)
                    return Column(v, mu, differenced(field, at, along, here))
            except Exception:  # beside the point it may not be defined
                return Column(v, mu, None)

        zeros = [torch.zeros_like(x) for x in tree_leaves((self.params, self.hyper))]
        drawn = torch.Generator().manual_seed(num)
        normal = [_normal(x, drawn) * max(1, x.numel()) ** -0.5 for x in zeros]

        def along_lambda(which: range) -> Column:
            # of the size of one, so that a tiny penalty shows; of its own where the loss is not defined so far away
            for size in (lambda x: x.abs().clamp_min(1.0), lambda x: torch.where(x == 0, 1.0, x.abs())):
                found = column([normal[i] * size(at[i]).to(x) if i in which else x for i, x in enumerate(zeros)])
                if found.difference is not None:
                    break
            return found

        in_w = column([*self.v.values(), *zeros[num:]])
        if len(zeros) == num:
            return [in_w]
        together = along_lambda(range(num, len(zeros)))
        groups = min(MOST_GROUPS, len(zeros) - num)
        if groups == 1 or (together.difference is not None and together.difference.size == 0):
            return [in_w, together]
        return [in_w, *(along_lambda(range(num + i, len(zeros), groups)) for i in range(groups))]

    def pushed(self, engine: Engine, at_once: int | None, own: bool = False) -> tuple[list[list[Tensor]], Params]:
        """Returns J v and each M mu of an engine, and its gradient.

        Args:
            engine: the candidate.
            at_once: columns that the run treats at once, at most.
            own: in the precision of the run.
        """
        rows = tree_map(lambda *x: torch.stack(x), *((column.v, column.mu) for column in self.columns))
        own = own or not self.is_raised
        given = (self.params, self.hyper, *rows) if own else raised((self.params, self.hyper, *rows))
        with nullcontext() if own else raising() if engine is ENGINES["folded"] else self.raising():
            w, h, *dots = given
            width, num = 1 if at_once == 1 else 2, len(self.columns)
            outs = [engine(self.loss, w, h, *tree_map(lambda x: x[k : k + width], dots)) for k in range(0, num, width)]  # noqa: B023
        rows = [x for out in outs for x in zip(*(dot.unbind() for dot in out.grad_tangents.values()), strict=True)]
        return [[x.double() for x in row] for row in rows], outs[0].grads

    def pulled(self, pull: Pull, own: bool = False) -> tuple[list[float], list[Tensor]]:
        """Returns (J^T u).v and each (M^T u).mu of a pullback, and (J^T u, M^T u)."""
        own = own or not self.is_raised
        w, h = (self.params, self.hyper) if own else raised((self.params, self.hyper))
        with nullcontext() if own else self.raising():
            _, g, pullback = pull(self.loss, w, h)
            adjoints = [x.double() for x in tree_leaves(pullback({name: x.to(g[name]) for name, x in self.u.items()}))]
        alongs = []
        for column in self.columns:
            along = tree_leaves((column.v, column.mu))
            alongs.append(float(sum((x * d.double()).sum() for x, d in zip(adjoints, along, strict=True))))
        return alongs, adjoints

    @cached_property
    def u(self) -> Params:
        """The adjoint, of independent normal numbers, such that every parameter weighs alike in u.(J v)."""
        drawn = torch.Generator().manual_seed(len(self.params))
        normal = {name: _normal(w, drawn).double() for name, w in self.params.items()}
        return {name: k * x for k, (name, x) in zip(self._weights, normal.items(), strict=True)}

    @cached_property
    def _weights(self) -> list[float]:
        """1 / |J v| of each parameter, as far as it is known to be more than rounding."""
        known = self.columns[0].difference
        if known is None:
            return [1.0] * len(self.params)
        least = max(1e-8 * known.size, 1e-300)
        return [1 / max(norm([d]), SLACK * e, least) for d, e in _pairs(known)]

    def _rounding(self, own: bool) -> float:
        """What numbers may be off for no other reason, of `_sizes`."""
        return OWN_ROUNDING * max(torch.finfo(x.dtype).eps for x in self.params.values()) if own else ROUNDING

    def _sizes(self, own: bool) -> list[float]:
        """Of each parameter's gradient; in the precision of the run its derivative is rounded too."""
        known = self.columns[0].difference
        of_g = [norm([g]) for g in self.gradient.values()]
        return [x + norm([d]) for x, d in zip(of_g, known.value, strict=True)] if own and known is not None else of_g

    def error_of_push(self, products: Sequence[Sequence[Tensor]], own: bool = False) -> float:
        """Returns the largest relative error of J v and M mu beyond what the differences leave open; 0 if none is."""
        figures, rounding, sizes = [0.0], self._rounding(own), self._sizes(own)
        for column, product in zip(self.columns, products, strict=True):
            if column.difference is None:
                continue
            least = 1e-8 * column.difference.size
            figures += [
                _relative(norm([x - d]), max(norm([x]), norm([d]), least), SLACK * error + rounding * size)
                for x, (d, error), size in zip(product, _pairs(column.difference), sizes, strict=True)
            ]
        return max(figures)

    def error_of_pull(self, alongs: Sequence[float], own: bool = False) -> float:
        """Returns the largest relative error of a pullback beyond what the differences leave open, likewise."""
        figures, rounding, sizes = [0.0], self._rounding(own), self._sizes(own)
        for column, along in zip(self.columns, alongs, strict=True):
            if column.difference is None:
                continue
            wanted = sum(float((u * d).sum()) for u, d in zip(self.u.values(), column.difference.value, strict=True))
            parts = list(zip(self._weights, _pairs(column.difference), sizes, strict=True))
            size = sum(k * norm([d]) for k, (d, _), _ in parts)
            open_ = sum(k * (SLACK * error + rounding * x) for k, (_, error), x in parts)
            figures.append(_relative(abs(along - wanted), max(size, abs(along)), open_))
        return max(figures)

    def strayed(self, grads: Params) -> float:
        """Returns how far an engine's gradient is from that of training, relative to its size."""
        plain = list(self.gradient.values())
        away = norm([x - y for x, y in zip(grads.values(), plain, strict=True)])
        return away / norm(plain) if norm(plain) > 0 else 0.0


def cuts_of(loss: Loss, params: Params, hyper: StepHyper) -> Cuts:
    """Returns what is cut in the training gradient at a point."""
    flat, spec = tree_flatten((params, hyper))

    def field(*leaves: Tensor, with_graph: bool = True) -> Sequence[Tensor]:
        value = loss(*tree_unflatten(list(leaves), spec))
        return torch.autograd.grad(value, leaves[: len(params)], create_graph=with_graph, materialize_grads=True)

    return Cuts(field, flat, partial(field, with_graph=False))


def _pairs(difference: Difference) -> list[tuple[Tensor, float]]:
    return list(zip(difference.value, difference.errors, strict=True))


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
