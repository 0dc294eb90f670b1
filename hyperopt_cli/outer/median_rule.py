"""The median stopping rule: a run that is worse than most runs were at the same step is not worth its end.

A run is stopped at step t if its mean training loss over steps 0 ... t - 1 is above the median of the same mean over
all runs that were completed. Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization",
https://doi.org/10.1145/3097983.3098043, section 3.2.2, who compare the best objective of the running trial with these
means: of a training loss on mini-batches the best is mostly luck. The rule is applied three times in a run, at T/4, T/2
and 3T/4, and not before 5 runs were completed.

Limits: what learns late is stopped early, such as a small learning rate that would have won at the end.
"""

from statistics import median

from torch import Tensor

QUARTERS = (1, 2, 3)
LEAST_COMPLETED = 5


class MedianRule:
    """Remembers how runs went, and says which run to stop.

    Args:
        steps: the horizon T.

    Attributes:
        curves: of each completed run, its mean training loss up to each of the steps where the rule is asked.
    """

    def __init__(self, steps: int) -> None:
        self._marks = [mark for mark in dict.fromkeys(steps * quarter // 4 for quarter in QUARTERS) if mark]
        self.curves: list[list[float]] = []

    def add(self, inner_loss: Tensor) -> None:
        """Takes in a completed run, by its training loss at every step, [T]."""
        self.curves.append([float(inner_loss[:mark].mean()) for mark in self._marks])

    def hopeless(self, t: int, inner_loss: Tensor) -> bool:
        """Returns whether to stop a run that has taken `t` steps, by its training loss at each of them, [t]."""
        if t not in self._marks or len(self.curves) < LEAST_COMPLETED:
            return False
        of_others = median(curve[self._marks.index(t)] for curve in self.curves)
        return float(inner_loss.mean()) > of_others
