"""What `hyperopt train` has measured: a line of metrics.jsonl for each training run, mean and spread over the seeds."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from hyperopt_cli.run_directory.json_files import read_lines
from hyperopt_cli.run_directory.result import Values

# of which mean and spread are told
FIGURES = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "training_loss")


class Trained(NamedTuple):
    """A plain training run.

    Attributes:
        values: `tuned`, of a run of `hyperopt run`, or `untuned`, those that the recipe starts from.
        seed: of its initial weights and batches.
        steps: the horizon.
        hyperparameters: natural values.
        wall_s: seconds of the training.
        validation_loss: the outer objective; infinite where the run diverged.
        training_loss: the mean inner loss over the last tenth of the horizon; infinite as above.
        validation_accuracy: None where there are no classes.
        test_loss: None without a test split.
        test_accuracy: None without a test split or classes.
        why: why the run diverged, with the inner step; None if it did not.
    """

    values: str
    seed: int
    steps: int
    hyperparameters: dict[str, Values]
    wall_s: float
    validation_loss: float = math.inf
    training_loss: float = math.inf
    validation_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns its line of metrics.jsonl: without what there is none of, losses of null where the run diverged."""
        content = {key: value for key, value in self._asdict().items() if value is not None}
        return {key: None if value == math.inf else value for key, value in content.items()}


def read_trained(path: Path) -> list[Trained]:
    """Returns the lines of the metrics.jsonl of `hyperopt train`; a missing file has none.

    Raises:
        UsageError: a line is damaged.
    """
    return read_lines(path, lambda content: Trained(**{key: each for key, each in content.items() if each is not None}))


class Spread(NamedTuple):
    """Mean and standard deviation of a figure over the seeds whose runs did not diverge.

    Attributes:
        mean: over the seeds.
        std: the sample standard deviation; None for a single seed.
    """

    mean: float
    std: float | None

    @classmethod
    def over(cls, runs: Sequence[Trained], field: str) -> Self | None:
        """Returns the spread of a field of `Trained`; None where no run has it."""
        numbers = [getattr(run, field) for run in runs if run.why is None and getattr(run, field) is not None]
        if not numbers:
            return None
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)

    def text(self, written: Callable[[float], str]) -> str:
        """Returns the spread in words, such as `0.12 +- 0.01`."""
        return written(self.mean) if self.std is None else f"{written(self.mean)} +- {written(self.std)}"


def summary_of(runs: Sequence[Trained]) -> dict[str, Any]:
    """Returns what result.json holds of tuned and untuned values each: the values, mean and spread of every figure."""
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(run.values for run in runs):
        of = [run for run in runs if run.values == kind]
        spreads = {field: Spread.over(of, field) for field in FIGURES}
        summary[kind] = {
            "hyperparameters": of[0].hyperparameters,
            "seeds": [run.seed for run in of],
            "num_diverged": sum(run.why is not None for run in of),
            **{field: spread._asdict() for field, spread in spreads.items() if spread is not None},
        }
    return summary
