"""What came out of a run: the content of result.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.json_files import plain, revive

if TYPE_CHECKING:
    from hyperopt_cli.run_directory.measured import Measured

Values: TypeAlias = "float | list[Values]"


@dataclass(frozen=True)
class Point:
    """Where the search stood at one outer step, or in a trial.

    Attributes:
        outer_step: its line of metrics.jsonl, from 0; None where it is a trial.
        validation_loss: the outer objective there; infinite where the run of the start diverged.
        hyperparameters: natural values, nested lists for what has a shape.
        trial: its line of trials.jsonl, from 0; None where it is an outer step.
        validation_accuracy: of the first seed on the validation split; None where there are no classes.
    """

    outer_step: int | None
    validation_loss: float
    hyperparameters: dict[str, Values]
    trial: int | None = None
    validation_accuracy: float | None = None

    @classmethod
    def of(cls, step: Measured) -> Point:
        """Returns the point of a measured outer step."""
        values: dict[str, Values] = {name: value.tolist() for name, value in step.hyperparameters.items()}
        accuracy = step.stats.get("validation_accuracy")
        return cls(step.outer_step, step.validation_loss, values, validation_accuracy=accuracy)

    @property
    def label(self) -> str:
        """How it is called in a table: `outer step 3`, `trial 12`."""
        return f"outer step {self.outer_step}" if self.trial is None else f"trial {self.trial}"

    def to_json(self) -> dict[str, Any]:
        """Returns what result.json holds of it: a loss of null where the run diverged, the last two where they are."""
        content = asdict(self)
        for key in ("trial", "validation_accuracy"):
            if content[key] is None:
                del content[key]
        if self.validation_loss == math.inf:
            content["validation_loss"] = None
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Point:
        """Makes a point from what `to_json` returned.

        Raises:
            KeyError, TypeError: a key is missing or unknown.
        """
        diverged = {"validation_loss": math.inf} if content["validation_loss"] is None else {}
        return cls(**{**content, **diverged})


@dataclass(frozen=True)
class Score:
    """One measurement on the test split; `accuracy` is None where the task has none."""

    loss: float
    accuracy: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """The test split, measured once at the start, unless its run diverged, and once at the best."""

    initial: Score | None
    best: Score


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        status: how it ended: done, diverged, interrupted, failed.
        mode: the mode of the hypergradient.
        initial: the start; None where the first training run diverged.
        best: the point of the lowest validation loss; the test split has no say in it.
        test: the test split, where the data set has one and the run came to its end.
        wall_s: seconds in all, over every resumption.
        bias: what biased the hypergradient; None where it was exact.
        fixed: natural values of what was not tuned, parameters of schedules too (`lr.final`); with those of a point
            they are all that the training took.
        sources_changed: where the user's own code changed while the run was stopped, and it was continued anyway:
            `{"outer_step", "files"}` each, the first outer step that was measured with the other code and its files.
    """

    status: str
    mode: str
    initial: Point | None
    best: Point | None
    test: HeldOut | None
    wall_s: float
    bias: str | None = None
    fixed: dict[str, Values] = field(default_factory=dict)
    sources_changed: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns what result.json holds; `bias`, `fixed` and `sources_changed` are left out where there is none."""
        content = asdict(self)
        for key in ("bias", "fixed", "sources_changed"):
            if not content[key]:
                del content[key]
        content |= {"initial": self.initial and self.initial.to_json(), "best": self.best and self.best.to_json()}
        return dict(plain(content))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        """Makes a result from the content of result.json; this is the inverse of `to_json`.

        Raises:
            UsageError: a key is missing or unknown.
        """
        fields = revive(dict(content))
        try:
            initial, best, test = fields.pop("initial"), fields.pop("best"), fields.pop("test")
            held_out = test and HeldOut(test["initial"] and Score(**test["initial"]), Score(**test["best"]))
            points = [point and Point.from_json(point) for point in (initial, best)]
            return cls(**fields, initial=points[0], best=points[1], test=held_out)
        except (KeyError, TypeError) as error:
            raise UsageError(f"result.json was written by another version, or by hand: {error}") from None
