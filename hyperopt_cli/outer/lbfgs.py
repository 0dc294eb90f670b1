"""L-BFGS with bounds: quasi-Newton directions from the last pairs of steps and changes of the gradient.

    d = -H g by the two-loop recursion,    x <- project(x + a d),    a by a line search for the strong Wolfe conditions

    E(x + a d) <= E(x) + c1 a g^T d,      |g(x + a d)^T d| <= c2 |g^T d|,      c1 = 1e-4, c2 = .9

Nocedal and Wright 2006, "Numerical Optimization", algorithms 7.4, 3.5 and 3.6; at bounds, coordinates whose derivative
points outwards are left out of the direction, as in the projected method of Bertsekas 1982.

Cost: a hypergradient for every point, those of the line search too; the first step goes half a unit. Prefer `auto`,
which starts from a scan, and spends a gradient only on steps that are accepted. This one is for problems that are
smooth, and started well.
"""

import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.outer.method import Answer, Ask, Method, Walk
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.outer.trust_region import FIRST_RADIUS

MEMORY = 10
FALL, FLAT = 1e-4, 0.9  # c1 and c2
MOST_TRIES = 20  # of a line search


class Point(NamedTuple):
    """A point of the line x + a d; where its run diverged E is infinite, and the slope unknown."""

    a: float
    x: Tensor
    value: float
    grad: Tensor | None
    slope: float


class LBFGS(Method):
    """Descends by L-BFGS from the recipe's start."""

    def walk(self, terrain: Terrain) -> Walk:
        """Yields the points of one line search after the other."""
        x, low, high = terrain.start, terrain.low, terrain.high
        (answer,) = yield [Ask(x, gradient=True, has_fallback=False)]
        value, grad = answer.value, answer.grad
        assert grad is not None
        pairs: list[tuple[Tensor, Tensor]] = []
        while True:
            held = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
            slope = torch.where(held, 0.0, grad)
            if not slope.any():
                return
            direction = torch.where(held, 0.0, -two_loops(slope, pairs))
            if float(direction @ slope) >= 0:
                pairs, direction = [], -slope
            scale = 1.0 if pairs else FIRST_RADIUS / float(direction.norm())
            start = Point(0.0, x, value, grad, float(slope @ direction))
            found = yield from line_search(terrain, start, direction, scale)
            if found is None or found.grad is None:
                if not pairs:
                    return
                pairs = []  # once more, along the gradient
                continue
            step, change = found.x - x, found.grad - grad
            if float(step @ change) > 1e-12 * float(change @ change):
                pairs = [*pairs, (step, change)][-MEMORY:]
            x, value, grad = found.x, found.value, found.grad


def two_loops(grad: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns H g, [K], for the inverse Hessian H of the pairs (s, y); g itself where there are none.

    Example:
        >>> two_loops(torch.tensor([2.0, 2.0]), [(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))])
        tensor([0.5000, 0.5000])
    """
    q, kept = grad.clone(), []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (s @ y)
        q = q - alpha * y
        kept.append(alpha)
    if pairs:
        s, y = pairs[-1]
        q = q * (s @ y) / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(kept), strict=True):
        q = q + s * (alpha - (y @ q) / (s @ y))
    return q


def line_search(
    terrain: Terrain, start: Point, direction: Tensor, first: float
) -> Generator[list[Ask], list[Answer], Point | None]:
    """Asks for points along a direction until one meets the strong Wolfe conditions, and returns it.

    Args:
        terrain: within whose bounds every point is moved.
        start: where the search begins, at a = 0.
        direction: downhill, [K].
        first: the first a.

    Returns:
        The point; the lowest one where no point met the conditions; None where none was lower than the start.
    """
    assert start.grad is not None
    low, high, a = start, None, first
    to_bound = torch.where(direction > 0, terrain.high - start.x, terrain.low - start.x) / direction
    longest = float(torch.where(direction == 0, 0.0, to_bound).max())  # from there on every coordinate is held
    for _ in range(MOST_TRIES):
        a = min(a, longest)
        x = terrain.project(start.x + a * direction)
        if torch.equal(x, low.x):
            break
        free = x == start.x + a * direction
        (answer,) = yield [Ask(x, gradient=True)]
        slope = math.nan if answer.grad is None else float(answer.grad @ torch.where(free, direction, 0.0))
        now = Point(a, x, answer.value, answer.grad, slope)
        promised = FALL * float(start.grad @ (x - start.x))
        rises = now.value > start.value + promised or (now.value >= low.value and low.a > 0)
        if answer.grad is None or rises:
            high = now
        elif abs(slope) <= -FLAT * start.slope:
            return now
        else:
            if slope * ((high.a if high is not None else math.inf) - low.a) >= 0:
                high = low
            low = now
        a = 2 * a if high is None else between(low, high)
    return None if low.grad is None or low.a == 0.0 else low


def between(low: Point, high: Point) -> float:
    """Returns where the cubic, or the parabola, through two points of a line has its minimum; not near their ends."""
    width = high.a - low.a
    if not math.isfinite(high.value):
        return low.a + 0.25 * width
    if math.isfinite(high.slope):
        d1 = low.slope + high.slope - 3 * (low.value - high.value) / (low.a - high.a)
        root = d1 * d1 - low.slope * high.slope
        d2 = math.copysign(math.sqrt(max(root, 0.0)), width)
        below = high.slope - low.slope + 2 * d2
        a = high.a - width * (high.slope + d2 - d1) / below if below else low.a + width / 2
    else:
        below = high.value - low.value - low.slope * width
        a = low.a - low.slope * width**2 / (2 * below) if below else low.a + width / 2
    share = (a - low.a) / width
    return low.a + width * min(max(share, 0.1), 0.9)
