"""What came out of a comparison of modes, and whether the exact ones agree."""

from dataclasses import dataclass
from typing import Any, Literal

from hyperopt_cli.comparison.common_factors import CommonFactors
from hyperopt_cli.comparison.difference import Difference
from hyperopt_cli.errors import Remedy, VerificationError

Status = Literal["exact", "biased", "refused", "out of memory", "diverged", "failed"]


@dataclass(frozen=True)
class Cost:
    """What one hypergradient cost.

    Attributes:
        wall_s: seconds that it took.
        peak_bytes: as in `Hypergradient.stats`.
        taken_bytes: the part of `peak_bytes` beyond what the process held before the call.
        num_steps: inner steps that were taken, repeated ones included.
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
class Compared:
    """What one mode gave, and how far it is from the reference.

    Attributes:
        mode: as it was named, e.g. `reverse:slots=50`.
        status: exact or biased where it ran to its end.
        reason: what biases it, why there is no result, or what the checks say of an exact one (a surrogate, "not
            judged"); None where there is nothing to say.
        exit_code: the exit code that it asks of the command; 0 where it ran to its end.
        validation_loss: E.
        hypergradient: dE/dlambda, nested lists for what has a shape.
        difference: its difference from the reference; None where there is none.
        tolerance: the largest difference that passes, if the mode is exact.
        cost: what this hypergradient cost; None where there is none.
        digits: decimal digits that the hypergradient has; None where that is not known.
        against_float32: its difference from the same mode with every product in float32, where the precision is lower.
    """

    mode: str
    status: Status
    reason: str | None = None
    exit_code: int = 0
    validation_loss: float | None = None
    hypergradient: dict[str, Any] | None = None
    difference: Difference | None = None
    tolerance: float | None = None
    cost: Cost | None = None
    digits: float | None = None
    against_float32: Difference | None = None


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


def check(comparison: Comparison) -> None:
    """Raises an error unless the exact modes agree.

    Raises:
        VerificationError: exact modes differ by more than the tolerance; it says in what, and by how much.
    """
    found, largest = [], 0.0
    for each in comparison.modes:
        if each.status != "exact" or each.difference is None:
            continue
        assert each.tolerance is not None
        sizes = each.difference.beyond(each.tolerance)
        beyond = [f"{what} by {size:.2g}" for what, size in sizes.items()]
        if beyond:
            largest = max(largest, *sizes.values())
            where = f"{each.mode} differs from {comparison.reference} in {', '.join(beyond)}"
            found.append(f"{where}, where {each.tolerance:g} passes")
    if not found:
        return
    lets_pass = Remedy("to let so much pass", ("--tolerance", f"{2 * largest:.1g}"), ("--out", "--tolerance"))
    in_float64 = Remedy("in float64", ("precision=float64",), ("--out",))
    remedy = (
        "Fewer --steps show whether it grows with the horizon"
        if comparison.precision == "float64"
        else "Rounding grows with the horizon: precision=float64, or fewer --steps, tells it from a defect"
    )
    raise VerificationError(
        f"exact modes disagree: {'; '.join(found)} (relative, in {comparison.precision}). {remedy}; "
        "--tolerance lets more pass"
    ).remedied(*([] if comparison.precision == "float64" else [in_float64]), lets_pass)
