"""Auto: a scan of plain runs (`scan.py`), and a descent in a trust region from its best (`trust_region.py`).

Cost: about 5 plain runs for the scan, then 4 for each step that is accepted and 1 for one that is not, by reverse mode.
Prefer it to every other method unless each outer step is to have other seeds.
"""

import math

from hyperopt_cli.outer.method import Method, Walk
from hyperopt_cli.outer.scan import scan
from hyperopt_cli.outer.terrain import Terrain
from hyperopt_cli.outer.trust_region import descend_from


class Auto(Method):
    """Scans, and descends from the best."""

    def walk(self, terrain: Terrain) -> Walk:
        """Yields the points of the scan at once, then those of the descent one by one."""
        starts = yield from scan(terrain)
        good = [start for start in starts if math.isfinite(start.value)]
        yield from descend_from(terrain, good or starts[:1])
