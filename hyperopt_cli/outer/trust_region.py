"""Descent in a trust region: a quadratic model of E, believed within a radius that E itself corrects.

    p = argmin g^T p + p^T B p / 2,      |p| <= radius, within the bounds
    ratio = (E(x) - E(x + p)) / (what the model predicts)

A plain run judges each step, and the gradient is taken only where it is accepted: a step that is refused costs 1, one
that is accepted 4. The radius doubles where the ratio is above 3/4 and the step has reached it, and falls to half of
the step where the ratio is below 1/4 (Nocedal and Wright 2006, "Numerical Optimization", algorithm 4.1); B is that of
`curvature_pairs.py`. A run that diverges is a step that is refused.

The length of a step is |p|^2 = sum over hyperparameters of the mean square over their entries: moving all of a schedule
together by one is a step of one, however many entries it has. A coordinate at a bound whose derivative points outwards
leaves the model until that turns.

Short steps meet the roughness of E, of which the gradient tells nothing: after two refusals in a row the matrix is made
anew, and where the model promises next to nothing too. The descent has converged where a fresh one promises no more. It
is stuck after two more refusals in a row, or where a third of its price has gone into steps that were refused.
"""

import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.outer.curvature_pairs import CurvaturePairs
from hyperopt_cli.outer.method import Answer, Ask, Known
from hyperopt_cli.outer.terrain import Terrain

FIRST_RADIUS, LARGEST_RADIUS = 0.5, 2.0
GOOD, BAD = 0.75, 0.25
MOST_REFUSALS = 2  # in a row
FRESH = 4.0  # what the radius is divided by with a fresh matrix
WORTHWHILE = 1e-4  # of E: what counts as a fall
MOST_WASTED = 1 / 3  # of the price, on steps that were refused
GRADIENT = 4.0  # the price of a point with its gradient


class Descended(NamedTuple):
    """How a descent has ended.

    Attributes:
        known: every point that it asked for.
        has_converged: whether its model promises nothing more from the best point; else it got stuck.
    """

    known: list[Known]
    has_converged: bool


class Model(NamedTuple):
    """Where the descent stands, in coordinates in which the length of a step is the Euclidean one."""

    x: Tensor
    value: float
    grad: Tensor


def descend_from(
    terrain: Terrain, starts: list[Known], radius: float = FIRST_RADIUS
) -> Generator[list[Ask], list[Answer], Descended]:
    """Yields the points of a descent from the best of `starts` whose hypergradient is not noise.

    Args:
        terrain: where it walks.
        starts: points whose runs did not diverge.
        radius: the first radius.

    Returns:
        What was measured, and whether it has converged.
    """
    known: list[Known] = []
    scale = terrain.sizes.sqrt()  # a point is x * scale
    low, high = terrain.low / scale, terrain.high / scale
    waiting = sorted(starts, key=lambda start: start.value)
    spent, wasted, now = float(len(starts)), 0.0, None

    def at(point: Tensor, answer: Answer) -> Model:
        assert answer.grad is not None
        return Model(point / scale, answer.value, answer.grad * scale)

    while now is None:
        if not waiting:
            return Descended(known, has_converged=False)
        start = waiting.pop(0)
        (answer,) = yield [Ask(start.point, gradient=True, has_fallback=bool(waiting))]
        known.append(Known(start.point, answer))
        spent += GRADIENT
        now = None if answer.grad is None else at(start.point, answer)
    pairs, within, refused, is_fresh = CurvaturePairs(len(scale)), radius, 0, False
    while wasted <= MOST_WASTED * spent:
        step, predicted = model_step(now, pairs, within, radius, low, high)
        whole, slope = float(step.norm()), -float(now.grad @ step)
        step = terrain.shortened(step * scale) / scale
        length = float(step.norm())
        share = length / whole if whole else 1.0  # the model at the shortened step
        predicted = share * slope - share**2 * (slope - predicted)
        if predicted <= WORTHWHILE * abs(now.value):
            if is_fresh:
                return Descended(known, has_converged=True)
            pairs.clear()
            within, is_fresh = radius / FRESH, True
            continue
        point = terrain.project((now.x + step) * scale)
        (answer,) = yield [Ask(point, gradient=True, below=now.value)]
        known.append(Known(point, answer))
        if answer.grad is not None:
            after = at(point, answer)
            ratio = (now.value - after.value) / predicted
            pairs.add(after.x - now.x, after.grad - now.grad)
            now, refused, spent, is_fresh = after, 0, spent + GRADIENT, False
            if ratio > GOOD and length > 0.8 * within:
                within = min(2 * within, LARGEST_RADIUS)
            elif ratio < BAD:
                within = length / 2
            continue
        spent, wasted, refused = spent + 1, wasted + 1, refused + 1
        within = length / (2 if math.isfinite(answer.value) else 4)
        if refused == MOST_REFUSALS and is_fresh:
            break
        if refused == MOST_REFUSALS:
            pairs.clear()
            within, refused, is_fresh = radius / FRESH, 0, True
    return Descended(known, has_converged=False)


def model_step(
    now: Model, pairs: CurvaturePairs, radius: float, first_radius: float, low: Tensor, high: Tensor
) -> tuple[Tensor, float]:
    """Returns the step that minimises the model within the radius and the bounds, [K], and the fall that it predicts.

    Args:
        now: the point, with the gradient there.
        pairs: what is known of the curvature; where that is nothing, the step goes `first_radius` along the gradient.
        radius: the longest step.
        first_radius: as above.
        low: bounds of the point, [K].
        high: likewise.
    """
    grad, free = now.grad, torch.ones_like(low, dtype=torch.bool)

    def times(vectors: Tensor) -> Tensor:
        return pairs.times(vectors) if len(pairs) else vectors * (grad.norm() / first_radius)

    step = torch.zeros_like(grad)
    for _ in range(len(grad)):
        along = torch.where(free, grad, 0.0)
        if not along.any():
            break
        basis = pairs.span(grad, free) if len(pairs) else along[:, None] / along.norm()
        inner, slope = basis.T @ times(basis), basis.T @ grad
        step = basis @ within_radius(inner, slope, radius)
        outward = free & (((now.x <= low) & (step < 0)) | ((now.x >= high) & (step > 0)))
        if not outward.any():
            break
        free &= ~outward
        step = torch.zeros_like(grad)
    step = torch.clamp(now.x + step, low, high) - now.x
    return step, -float(grad @ step + step @ times(step[:, None])[:, 0] / 2)


def within_radius(hessian: Tensor, grad: Tensor, radius: float) -> Tensor:
    """Returns argmin g^T p + p^T B p / 2 over |p| <= radius, [n]: p = -(B + mu I)^-1 g, mu by bisection.

    Nocedal and Wright 2006, theorem 4.1.

    Args:
        hessian: B, [n, n], symmetric.
        grad: g, [n].
        radius: the longest step.

    Example:
        >>> within_radius(torch.eye(2), torch.tensor([0.0, 4.0]), 1.0)
        tensor([ 0., -1.])
    """
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    slope = vectors.T @ grad

    def step(mu: float) -> Tensor:
        found: Tensor = -(vectors @ (slope / (values + mu)))
        return found

    least = float(values.min())
    if least > 0 and step(0.0).norm() <= radius:
        return step(0.0)
    below, above = max(0.0, -least), max(0.0, -least) + float(grad.norm()) / radius
    for _ in range(100):
        middle = (below + above) / 2
        below, above = (middle, above) if step(middle).norm() > radius else (below, middle)
    return step(above)
