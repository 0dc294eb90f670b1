"""What came out of a comparison of modes: the content of comparison.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.json_files import plain, revive
from hyperopt_cli.run_directory.result import Values

Status = Literal["exact", "biased", "refused", "out of memory", "diverged", "failed"]


@dataclass(frozen=True)
class Cost:
    """What one hypergradient cost.

    Attributes:
        wall_s: seconds.
        peak_bytes: as in `Hypergradient.stats`.
        taken_bytes: of it, what the call took beyond what the process held before.
        num_steps: inner steps taken, those that were taken again among them.
        num_gradients: gradients of the training loss.
        num_hvps: products with its Hessian.
        bits_per_parameter: what the reversal stored of each parameter over the whole run; None in other modes.
    """

    wall_s: float
    peak_bytes: int
    taken_bytes: int
    num_steps: int
    num_gradients: int
    num_hvps: int
    bits_per_parameter: float | None = None


@dataclass(frozen=True)
class Difference:
    """Relative differences from the reference mode.

    Attributes:
        validation_loss: of E.
        params: of w_T.
        hypergradient: of each hyperparameter's derivative.
    """

    validation_loss: float
    params: float
    hypergradient: dict[str, float]

    def beyond(self, tolerance: float) -> dict[str, float]:
        """What differs by more than `tolerance`, in words, with how much."""
        named = {
            "the validation loss": self.validation_loss,
            "the final parameters": self.params,
            **{f"the hypergradient of {name}": value for name, value in self.hypergradient.items()},
        }
        return {what: value for what, value in named.items() if not value <= tolerance}


@dataclass(frozen=True)
class Compared:
    """One mode.

    Attributes:
        mode: as it was named, e.g. `reverse:slots=50`.
        status: exact or biased where it ran to its end.
        reason: what biases it, why there is no result, or what the checks say of an exact one (a surrogate, "not
            judged"); None where there is nothing to say.
        exit_code: what it asks of the command: 0 where it ran to its end.
        validation_loss: E.
        hypergradient: dE/dlambda, nested lists for what has a shape.
        difference: from the reference; None where there is none.
        tolerance: the largest difference that passes, if the mode is exact.
        cost: of this one hypergradient.
        against_float32: from the same mode with every product in float32, where the precision is lower.
    """

    mode: str
    status: Status
    reason: str | None = None
    exit_code: int = 0
    validation_loss: float | None = None
    hypergradient: dict[str, Values] | None = None
    difference: Difference | None = None
    tolerance: float | None = None
    cost: Cost | None = None
    against_float32: Difference | None = None


@dataclass(frozen=True)
class FactorFrom:
    """A contraction factor, from a step on: `9/10`, or one for each parameter, or a range over elements."""

    step: int
    factor: str | dict[str, str]


@dataclass(frozen=True)
class Moved:
    """A hyperparameter that a rational factor moves: its value as written and as used, at the step where most."""

    step: int
    written: float
    used: float

    @property
    def relative(self) -> float:
        """By which share of its value it is moved."""
        return abs(self.used - self.written) / max(abs(self.written), 1e-300)


@dataclass(frozen=True)
class CommonFactors:
    """The rational factors of reversible mode, at which every mode ran.

    Attributes:
        in_use: by what they are called, e.g. `momentum`, from each step on at which they change.
        moved: the arguments of the optimizer whose values differ from those written.
    """

    in_use: dict[str, list[FactorFrom]]
    moved: dict[str, Moved]


@dataclass(frozen=True)
class Comparison:
    """The same hypergradient in several modes.

    Attributes:
        steps: the horizon T.
        precision: the dtype of the parameters, e.g. `float32`, or the lower one of the inner gradient's products.
        reference: the exact mode that the others are compared with, the first one that ran; None where none did.
        factors: where every mode ran at those of reversible mode; None where that is not among them.
        modes: in the order in which they were named.
    """

    steps: int
    precision: str
    reference: str | None
    factors: CommonFactors | None
    modes: tuple[Compared, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the content of comparison.json."""
        return dict(plain(asdict(self)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`.

        Raises:
            UsageError: a key is missing or unknown.
        """
        try:
            fields = revive(dict(content))
            factors = fields.pop("factors")
            modes = tuple(_compared(entry) for entry in fields.pop("modes"))
            return cls(**fields, factors=factors and _factors(**factors), modes=modes)
        except (KeyError, TypeError) as error:
            raise UsageError(f"comparison.json was written by another version, or by hand: {error}") from None


def _factors(in_use: dict[str, list[dict[str, Any]]], moved: dict[str, dict[str, Any]]) -> CommonFactors:
    return CommonFactors(
        {label: [FactorFrom(**entry) for entry in entries] for label, entries in in_use.items()},
        {name: Moved(**entry) for name, entry in moved.items()},
    )


def _compared(entry: dict[str, Any]) -> Compared:
    difference, against, cost = (entry.pop(key, None) for key in ("difference", "against_float32", "cost"))
    return Compared(
        **entry,
        difference=difference and Difference(**difference),
        against_float32=against and Difference(**against),
        cost=cost and Cost(**cost),
    )
