"""Tree-structured Parzen estimator, by Optuna: points that are likelier among the good trials than among the others.

Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization",
https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization; Akiba et al. 2019, "Optuna",
https://arxiv.org/abs/1907.10902. Optuna's sampler with the settings that it has by itself; the first ten trials are
drawn uniformly. Box and start are those of random search (`random_search.py`). A trial that diverges or is stopped
counts among the bad ones.

The study lives in memory. A run that is resumed makes it anew from the seed and tells it everything again, which gives
the same points with the same versions of Optuna and numpy.

Cost: a plain run a point, less where it is stopped (`median_rule.py`). Each point depends on all before it, so its runs
are taken one after the other, whatever `--jobs` is.
"""

import math
from collections.abc import Generator

import torch
from torch import Tensor

from hyperopt_cli.data.seeds import derive
from hyperopt_cli.errors import needing
from hyperopt_cli.outer.search import Search


class TPE(Search):
    """Asks Optuna's `TPESampler`.

    Args:
        trials: how many runs, that of the start among them; None: it goes on until the loop stops asking.
        tied: whether all entries of a hyperparameter move together.

    Raises:
        MissingPackageError: Optuna is not installed.
    """

    def __init__(self, trials: int | None = None, tied: bool = False) -> None:
        super().__init__(trials, tied)
        with needing("the search tpe"):
            import optuna  # noqa: F401 - missed here, before anything is measured

    def chosen(self, start: Tensor, low: Tensor, high: Tensor, seed: int) -> Generator[list[Tensor], list[float], None]:
        """Yields the start and then what the sampler suggests, one at a time, and tells it what came of each.

        Args:
            start: the only vector of the first list, [n].
            low: the lowest vector, [n].
            high: the highest vector, [n].
            seed: what is drawn is a function of it.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=derive(seed, "search") % 2**32))
        box = {
            str(entry): optuna.distributions.FloatDistribution(*ends)
            for entry, ends in enumerate(zip(low.tolist(), high.tolist(), strict=True))
        }
        study.enqueue_trial(dict(zip(box, torch.clamp(start, low, high).tolist(), strict=True)))
        while True:
            trial = study.ask(box)
            (value,) = yield [torch.tensor([trial.params[entry] for entry in box], dtype=torch.float64)]
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
