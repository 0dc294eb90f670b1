"""Bayesian optimisation with gradients: the next point is where a Gaussian process promises most, near the best.

    next = argmin mean(x) - kappa sd(x),      |x_i - best_i| <= radius for every i, within the bounds

The process (`gaussian_process.py`) is told every value that was measured, and every gradient. It is the descent for
an E that is rough: its noise is fitted, a value that is lucky is not believed, and a derivative that tells nothing of
the trend is given little weight. `best` is the evaluation at which its mean is lowest. A plain run judges each point,
and where E is below that mean, or within half of the noise above it, the gradient is taken, unless it tells less than
the plain runs that it costs. x_i is an entry over the root of how many its hyperparameter has or, while little is known
of many hyperparameters, the coordinate along a direction that was measured. A step is shortened as in the trust region.

Wu, Poloczek, Wilson and Frazier 2017, "Bayesian optimization with gradients", https://arxiv.org/abs/1703.04389. The
lower confidence bound is that of Srinivas, Krause, Kakade and Seeger 2010, https://arxiv.org/abs/0912.3995; the box
about the best point that of Eriksson et al. 2019, https://arxiv.org/abs/1910.01739, of constant size.

Cost: a scan (`scan.py`), then 1 for each point, and 3 more by reverse mode where its gradient is taken. Between two
points it fits the process, a tenth of a second. It ends after 20 points in a row that were no lower.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperopt_cli.data.seeds import generator
from hyperopt_cli.outer.gaussian_process import GaussianProcess, Warp
from hyperopt_cli.outer.method import Ask, Known, Method, Walk
from hyperopt_cli.outer.scan import scan
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.outer.trust_region import GRADIENT, WORTHWHILE

KAPPA = 1.0
RADIUS = 0.5
PATIENCE = 20
NUM_STARTS = 4  # of the search for the next point
MOST_ITERATIONS = 40
NEAR = 1e-3  # a bound, in shares of the box: it is taken


class Bayes(Method):
    """Scans, and lets a Gaussian process choose from there."""

    def walk(self, terrain: Terrain) -> Walk:
        """Yields the points of the scan at once, then one by one those that are promising."""
        starts = yield from scan(terrain)
        yield from explore(terrain, starts)


def explore(terrain: Terrain, known: Sequence[Known]) -> Walk:
    """Yields promising points near the best, until `PATIENCE` in a row were no lower.

    Args:
        terrain: where it walks.
        known: what was measured before.
    """
    known = list(known)
    scale = terrain.sizes.sqrt()  # a point is x * scale
    finite = [k for k in known if math.isfinite(k.value)]
    if all(k.answer.grad is None for k in known):
        start = min(finite or known[:1], key=lambda k: k.value)
        (answer,) = yield [Ask(start.point, gradient=True, has_fallback=len(finite) > 1)]
        told = answer if math.isfinite(answer.value) else start.answer  # its gradient overflows
        known = [k for k in known if k is not start] + [Known(start.point, told)]
    if not any(math.isfinite(k.value) for k in known):
        return
    guess, refused = None, 0
    while refused < PATIENCE:
        points = torch.stack([k.point / scale for k in known])
        warp = Warp([k.answer for k in known])
        values = torch.tensor([warp.value(k.answer) for k in known], dtype=torch.float64)
        process = GaussianProcess(points, values, [warp.slope(k.answer, scale) for k in known], guess)
        guess = process.fitted
        if not process.basis.shape[1]:  # one point, without a slope
            return
        means = process.at(process.inside(points))[0]
        best = int(torch.where(torch.tensor([math.isfinite(k.value) for k in known]), means, math.inf).argmin())
        found = promising(process, points[best], terrain.low / scale, terrain.high / scale, len(known))
        point = terrain.project(known[best].point + terrain.shortened((found - points[best]) * scale))
        lowest = min(k.value for k in known)
        below = max(lowest, warp.back(float(means[best]) + process.noise / 2))
        (answer,) = yield [Ask(point, gradient=process.tells_more(RADIUS, GRADIENT - 1), below=below)]
        refused = 0 if answer.value < lowest - WORTHWHILE * abs(lowest) else refused + 1
        known.append(Known(point, answer))


def promising(process: GaussianProcess, best: Tensor, low: Tensor, high: Tensor, seed: int) -> Tensor:
    """Returns the point of the lowest confidence bound near the best, [K].

    The box is about the best, in the coordinates of the basis; within it L-BFGS goes down from the best and from a few
    points that are drawn.

    Args:
        process: what is known.
        best: the centre of the box, [K].
        low: bounds, [K].
        high: likewise.
        seed: of the points that are drawn.
    """
    centre = process.inside(best[None])[0]
    lowest, highest = centre - RADIUS, centre + RADIUS
    if len(centre) == len(best):  # the coordinates themselves, moved
        lowest = torch.maximum(lowest, low - process.origin)
        highest = torch.minimum(highest, high - process.origin)
    middle, half = (lowest + highest) / 2, (highest - lowest).clamp(min=1e-9) / 2
    draws = torch.randn(NUM_STARTS - 1, len(centre), generator=generator(seed, "bayes"), dtype=best.dtype)
    starts = torch.cat([centre[None], centre + RADIUS / 2 * draws])
    free = torch.atanh(((starts - middle) / half).clamp(-0.9, 0.9)).requires_grad_()
    search = torch.optim.LBFGS([free], max_iter=MOST_ITERATIONS, line_search_fn="strong_wolfe")

    def bounds() -> Tensor:
        at = middle + half * free.tanh()
        mean, deviation = process.at(process.inside(torch.clamp(process.outside(at), low, high)))
        return mean - KAPPA * deviation

    def loss() -> Tensor:
        search.zero_grad()
        value = bounds().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    share = free.detach()[int(bounds().detach().argmin())].tanh()
    share = torch.where(share.abs() > 1 - NEAR, share.sign(), share)
    return process.outside((middle + half * share)[None])[0]
