"""What the searches have in common: plain runs at points of a box, the first at the recipe's start.

They are the baselines of a descent, under the same recipe: the same hyperparameters in the same coordinates
(`terrain.py`), the same training run, and a price in plain runs. A run that goes badly is stopped by the median rule
(`median_rule.py`). A search that is tied moves all entries of a hyperparameter together, by one number: of seven
learning rates it searches the mean, and keeps their ratios.
"""

from abc import abstractmethod
from collections.abc import Generator

import torch
from torch import Tensor

from hyperopt_cli.outer.method import Ask, Method, Walk
from hyperopt_cli.outer.terrain import Terrain


class Search(Method):
    """Takes plain runs, and no hypergradient.

    Args:
        trials: how many runs, that of the start among them; None: it goes on until the loop stops asking.
        tied: whether all entries of a hyperparameter move together.
    """

    def __init__(self, trials: int | None = None, tied: bool = False) -> None:
        self._trials, self._tied = trials, tied

    @abstractmethod
    def chosen(self, start: Tensor, low: Tensor, high: Tensor, seed: int) -> Generator[list[Tensor], list[float], None]:
        """Yields lists of vectors, without end, and is sent E at each, infinite where the run came to no end.

        Args:
            start: the only vector of the first list, [n].
            low: the lowest vector that it may yield, [n].
            high: the highest vector that it may yield, [n].
            seed: what is drawn is a function of it.
        """

    def walk(self, terrain: Terrain) -> Walk:
        """Yields lists of points, the first of the recipe's start alone."""
        start, (low, high) = terrain.start, terrain.box()
        first = start
        if self._tied:  # by how much each hyperparameter is moved, so that all of its entries stay in the box
            parts = [terrain.entries(key) for key in terrain.axes]
            low = torch.stack([(low - start)[part].max() for part in parts])
            high = torch.stack([(high - start)[part].min() for part in parts])
            first = torch.zeros_like(low)
        chosen = self.chosen(first, low, high, terrain.seed)
        next(chosen)
        points, num = [start], 0
        while True:
            answers = yield [Ask(point, kind="search", stops_hopeless=True) for point in points]
            num += len(points)
            if num == self._trials:
                return
            vectors = chosen.send([answer.value for answer in answers])
            vectors = vectors[: None if self._trials is None else self._trials - num]
            points = [terrain.project(start + terrain.spread(x) if self._tied else x) for x in vectors]
