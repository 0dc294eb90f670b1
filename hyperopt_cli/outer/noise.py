"""Whether a hypergradient says anything about E: noise has no digits, or is exact and useless.

Two signs come with every hypergradient. They cost nothing, and count only where the run has amplified perturbations
more than a hundredfold (`stats["growth"]`; a run that trains well has less than ten):

    few digits     `stats["digits"]` is below 3: rounding, amplified by the run, reaches thousandths of w
    too far        for the smallest step that the outer loop would take it predicts a change larger than |E|

Neither is a proof: a rate that is merely too high amplifies its rounding no more than w itself, and near E = 0 every
step is large. So where one of them is there, E is asked at both ends of that smallest step d, by two plain runs:

    predicted = dE/draw . (up - down),      found = E(up) - E(down),      up, down = project(raw +- d)

The hypergradient stands where `found` is within a factor of ten of what was predicted, as a difference or, since what
grows over a run grows exponentially, as a difference of log E: |found / predicted - 1| is then how many digits it has.
It is noise where E contradicts its sign or its size. Metz, Freeman, Schoenholz and Kachman 2021, "Gradients are not all
you need", https://arxiv.org/abs/2111.05803.

Cost: none without a sign; else 2 plain runs for each replica (`num_asked_steps` in the stats), which are not repeated
until the growth is three times as large as what E has confirmed: a descent without noise asks once, if at all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hyperopt_cli.problem import Hyper

FEWEST_DIGITS = 3.0
GROWN = 100.0
WITHIN = 10.0
CONFIRMED_TO = 3.0


class Ends(NamedTuple):
    """Both ends of the smallest step that the outer loop would take, in raw coordinates and within bounds.

    Attributes:
        up: the end against the step, where E is predicted to be higher.
        down: the end along the step.
        predicted: dE/draw . (up - down), not negative.
    """

    up: Hyper
    down: Hyper
    predicted: float

    @classmethod
    def of(cls, raw: Hyper, grad: Hyper, step: Hyper, project: Callable[[Hyper], Hyper]) -> "Ends":
        """Returns the ends of a step, taken from `raw` in both directions.

        Args:
            raw: the point where the hypergradient was measured.
            grad: dE/draw there.
            step: a step with the signs of `grad`.
            project: moves a point within the bounds.
        """
        up = project({key: value + step[key] for key, value in raw.items()})
        down = project({key: value - step[key] for key, value in raw.items()})
        return cls(up, down, sum(float((grad[key] * (up[key] - down[key])).sum()) for key in raw))


class Judgement(NamedTuple):
    """What is known of one hypergradient.

    Attributes:
        digits: decimal digits that it has.
        growth: how much the run amplifies its tangents or adjoints.
        noise: why it is noise; None if it is not.
        num_asked: points at which E was asked.
    """

    digits: float
    growth: float
    noise: str | None = None
    num_asked: int = 0


def judge(
    stats: Sequence[Mapping[str, Any]],
    value: float,
    ends: Ends,
    objective: Callable[[Hyper], float],
    confirmed: float = 0.0,
) -> Judgement:
    """Judges whether the mean of some hypergradients is noise.

    Args:
        stats: the stats of each hypergradient, with `digits` and `growth`.
        value: E.
        ends: the ends of the smallest step.
        objective: raw -> E of a plain training run, infinite where that diverges.
        confirmed: up to which growth E has confirmed the hypergradients so far.
    """
    digits, growth = min(each["digits"] for each in stats), max(each["growth"] for each in stats)
    few, too_far = digits < FEWEST_DIGITS, ends.predicted / 2 > abs(value)
    if growth <= max(GROWN, confirmed) or not (few or too_far) or ends.predicted == 0:
        return Judgement(digits, growth)
    up, down = objective(ends.up), objective(ends.down)
    found = found_to_predicted(ends.predicted, value, up, down)
    if found is not None:
        measured = -math.log10(max(abs(found - 1), 1e-16)) if math.isfinite(found) else 0.0
        return Judgement(max(digits, round(measured, 1)), growth, None, 2)
    why = (
        f"a run that amplifies rounding {growth:.1g} times leaves it {digits:.1f} digits"
        if few
        else "it is exact and useless"
    )
    return Judgement(
        0.0,
        growth,
        f"{why}; at the ends of the smallest step that the outer loop would take, E is {up:.5g} and {down:.5g}, where "
        f"it predicts a difference of {ends.predicted:.3g}",
        2,
    )


def found_to_predicted(predicted: float, value: float, up: float, down: float) -> float | None:
    """Returns the change of E that was found over the one that was predicted; None where E contradicts it.

    Args:
        predicted: the difference of E between the two ends, above 0.
        value: E between them.
        up: E where it should be higher.
        down: E where it should be lower.

    Example:
        >>> found_to_predicted(0.2, 1.0, 1.1, 0.9)
        1.0
        >>> found_to_predicted(0.2, 1.0, 0.9, 1.1), found_to_predicted(1e6, 1.0, 1.1, 0.9)
        (None, None)
    """
    if math.isinf(up) and math.isfinite(down):
        return math.inf  # higher than any number: up there the run diverges
    if not (math.isfinite(up) and math.isfinite(down)):
        return None
    ratios = [(up - down) / predicted]
    if min(up, down, value) > 0:
        ratios.append(math.log(up / down) / (predicted / value))
    near = [ratio for ratio in ratios if 1 / WITHIN <= ratio <= WITHIN]
    return min(near, key=lambda ratio: abs(math.log(ratio)), default=None)
