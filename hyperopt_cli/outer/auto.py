"""Auto: a scan of plain runs (`scan.py`), and a descent in a trust region from its best (`trust_region.py`).

Cost: about 5 plain runs for the scan, then 4 for each step that is accepted and 1 for one that is not, by reverse mode.
Prefer it to every other method unless each outer step is to have other seeds.
"""

import math

from hyperopt_cli.outer.method import Method, Walk
from hyperopt_cli.outer.scan import MOST_FURTHER, asks, at_rate, further, scan_points
from hyperopt_cli.outer.terrain import RATE, Terrain
from hyperopt_cli.outer.trust_region import Start, descend_from


class Auto(Method):
    """Scans, and descends from the best."""

    def walk(self, terrain: Terrain) -> Walk:
        """Yields the points of the scan at once, then those of the descent one by one."""
        points = scan_points(terrain)
        answers = yield asks(points)
        starts = [Start(point, answer.value) for point, answer in zip(points, answers, strict=True)]
        if RATE in terrain.axes and terrain.rates:
            axis, entries = terrain.axes[RATE], terrain.entries(RATE)
            for _ in range(MOST_FURTHER):
                tried = {float(axis.natural(start.point[entries].mean())): start.value for start in starts}
                rate = further(terrain, tried)
                if rate is None:
                    break
                point = at_rate(terrain, rate)
                if any(point.equal(start.point) for start in starts):  # held back by bounds
                    break
                (answer,) = yield asks([point])
                starts.append(Start(point, answer.value))
        good = [start for start in starts if math.isfinite(start.value)]
        yield from descend_from(terrain, good or starts[:1])
