"""A scan of plain training runs: where a descent starts, whatever the recipe starts from.

The points follow from the recipe's start, the bounds and the class of the inner optimizer alone: the start itself, and
beside it the learning rate at whole decades (`InnerOptimizer.rates`), all of a schedule moved together. Where no rate
is tuned, they are four points of a Sobol sequence within the bounds that are given. While the best is the last of the
rates on its side, the next decade is tried too. A start that diverges is no error.

Cost: a plain run for each point, about five; no hypergradient.
"""

import math
from collections.abc import Generator

import torch
from torch import Tensor

from hyperopt_cli.outer.method import Answer, Ask, Known
from hyperopt_cli.outer.terrain import RATE, Terrain

NUM_SOBOL = 4
MOST_SOBOL = 21201  # coordinates that torch has Sobol numbers for
MOST_FURTHER = 2


def scan_points(terrain: Terrain) -> list[Tensor]:
    """Returns the points of a scan, the recipe's start first, [K] each and no two the same."""
    start, low, high = terrain.start, terrain.low, terrain.high
    points = [start]
    if RATE in terrain.axes:
        points += [at_rate(terrain, rate) for rate in terrain.rates]
    else:
        bounded = terrain.bounded.nonzero().flatten()[:MOST_SOBOL]
        if len(bounded):
            engine = torch.quasirandom.SobolEngine(len(bounded))  # type: ignore[no-untyped-call]
            for draw in engine.draw(NUM_SOBOL + 1, dtype=torch.float64)[1:]:  # the first is a corner
                point = start.clone()
                point[bounded] = low[bounded] + draw * (high - low)[bounded]
                points.append(point)
    different: list[Tensor] = []
    for point in points:
        if not any(torch.allclose(point, other, rtol=0.0, atol=1e-3) for other in different):
            different.append(point)
    return different


def at_rate(terrain: Terrain, rate: float) -> Tensor:
    """Returns the recipe's start with a mean learning rate of `rate`, and all of its schedule moved together."""
    point, entries, axis = terrain.start, terrain.entries(RATE), terrain.axes[RATE]
    values, mean = axis.natural(point[entries]), rate_of(terrain, point)
    point[entries] = axis.coordinate(values * (rate / mean) if mean > 0 else torch.full_like(values, rate))
    return terrain.project(point)


def rate_of(terrain: Terrain, point: Tensor) -> float:
    """Returns the mean learning rate of a point, the geometric mean where all are above 0, as `at_rate` sets it."""
    values = terrain.axes[RATE].natural(point[terrain.entries(RATE)])
    return float(values.log().mean().exp() if bool((values > 0).all()) else values.mean())


def further(tried: dict[float, float]) -> float | None:
    """Returns the next rate to try: a decade beyond the best, where that is the last on its side; None: there is none.

    Args:
        tried: rate -> E there, infinite where the run diverged.

    Example:
        >>> further({0.1: 2.0, 1.0: 1.0}), further({0.1: 1.0, 1.0: 2.0, 0.01: 3.0})
        (10.0, None)
    """
    best = min(tried, key=lambda rate: tried[rate])
    if math.isfinite(tried[best]) and best == max(tried):
        return best * 10
    return min(tried) / 10 if best == min(tried) or not math.isfinite(tried[best]) else None


def scan(terrain: Terrain) -> Generator[list[Ask], list[Answer], list[Known]]:
    """Yields the points of a scan at once, then further rates one by one, and returns all of them with their E."""
    starts: list[Known] = []
    points = scan_points(terrain)
    for _ in range(1 + MOST_FURTHER):
        answers = yield [Ask(point, kind="scan") for point in points]
        starts += [Known(point, answer) for point, answer in zip(points, answers, strict=True)]
        if RATE not in terrain.axes or not terrain.rates:
            break
        rate = further({rate_of(terrain, start.point): start.value for start in starts})
        points = [] if rate is None else [at_rate(terrain, rate)]
        if not points or any(points[0].equal(start.point) for start in starts):  # held back by bounds
            break
    return starts
