"""Auto: a scan of plain runs (`scan.py`), a descent in a trust region from its best (`trust_region.py`), and where that
gets stuck, for E is rough, a Gaussian process over all that was measured (`bayes.py`).

Cost: about 5 plain runs for the scan, then 4 for each step that is accepted and 1 for one that is not, by reverse mode.
Prefer it to every other method unless each outer step is to have other seeds.
"""

import math

from hyperopt_cli.outer.bayes import explore
from hyperopt_cli.outer.method import Method, Walk
from hyperopt_cli.outer.scan import scan
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.outer.trust_region import descend_from


class Auto(Method):
    """Scans, descends from the best, and explores where the descent gets stuck."""

    def walk(self, terrain: Terrain) -> Walk:
        """Yields the points of the scan at once, then those of the descent and what follows one by one."""
        starts = yield from scan(terrain)
        good = [start for start in starts if math.isfinite(start.value)]
        known, has_converged = yield from descend_from(terrain, good or starts[:1])
        if not has_converged:
            of_scan = [start for start in starts if not any(start.point.equal(k.point) for k in known)]
            yield from explore(terrain, [*of_scan, *known])
