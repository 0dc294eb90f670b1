"""A scan of plain training runs: where a descent starts, whatever the recipe starts from.

The points follow from the recipe's start, the bounds and the class of the inner optimizer alone: the start itself, and
beside it the learning rate at whole decades (`InnerOptimizer.rates`), all of a schedule moved together. Where no rate
is tuned, they are four points of a Sobol sequence within the bounds that are given. While the best is the last of the
rates on its side, the next decade is tried too. A start that diverges is no error.

Cost: a plain run for each point, about five; no hypergradient.
"""

import math

import torch
from torch import Tensor

from hyperopt_cli.outer.method import Ask
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
    values = axis.natural(point[entries])
    mean = values.log().mean().exp() if bool((values > 0).all()) else None
    point[entries] = axis.coordinate(torch.full_like(values, rate) if mean is None else values * (rate / mean))
    return terrain.project(point)


def further(terrain: Terrain, tried: dict[float, float]) -> float | None:
    """Returns the next rate to try: a decade beyond the best, where that is the last on its side; None: there is none.

    Args:
        terrain: where the scan is made.
        tried: rate -> E there, infinite where the run diverged.
    """
    best = min(tried, key=lambda rate: tried[rate])
    if not math.isfinite(tried[best]) and len(tried) >= len(terrain.rates):
        return min(tried) / 10  # everything diverges: lower
    if best == max(tried):
        return best * 10
    return best / 10 if best == min(tried) else None


def asks(points: list[Tensor]) -> list[Ask]:
    """Returns what asks for plain runs at `points`."""
    return [Ask(point, kind="scan") for point in points]
