"""Random search: points drawn uniformly in a box, one after the other, whatever came of those before.

Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization",
https://www.jmlr.org/papers/v13/bergstra12a.html. The box is `Terrain.box`; uniform is meant in its coordinates, decades
for a learning rate. The first point is the recipe's start.

Cost: a plain run a point, less where it is stopped (`median_rule.py`). It is what a method has to beat; prefer `tpe`
among the searches, and `auto` to both.
"""

from collections.abc import Generator

import torch
from torch import Tensor

from hyperopt_cli.data.seeds import generator
from hyperopt_cli.outer.search import Search

AT_ONCE = 64  # what a list has; the draws are the same with any number


class RandomSearch(Search):
    """Draws points uniformly in the box, whatever came of the others."""

    def chosen(self, start: Tensor, low: Tensor, high: Tensor, seed: int) -> Generator[list[Tensor], list[float], None]:
        """Yields the start and then lists of uniform draws, which don't depend on what it is sent.

        Args:
            start: the only vector of the first list, [n].
            low: the lowest vector, [n].
            high: the highest vector, [n].
            seed: what is drawn is a function of it.
        """
        draws = generator(seed, "search")
        yield [start]
        while True:
            shares = [torch.rand(len(low), generator=draws, dtype=torch.float64) for _ in range(AT_ONCE)]
            yield [low + (high - low) * share for share in shares]
