"""How far a result is from the reference's, and how far it may be.

The difference of a tensor from the reference's is

    |a - b| / max(|b|, FLOOR)        in float64, Euclidean norms, b the reference's

so that a hypergradient of norm below `FLOOR` is compared in absolute terms: rounding is relative to the terms of a sum,
not to a sum that nearly cancels. E, w_T and the derivative in every hyperparameter are compared.

`TOLERANCES` say which difference passes between exact modes. In float64 modes differ by 1e-13 or less on runs that
train, and a defect shows at once: 1e-8. In float32 forward and reverse differed by 2e-6 to 2e-5 over 100 to 300 steps
of the shipped digits recipe, and rounding grows with the horizon as the training run amplifies it: 1e-3 tells most
defects from that. Where a run amplifies more (at a high rate over 1,000 steps the same recipe differed by tens of per
cent in float32, and by 4e-14 in float64), float32 cannot say, and float64 has to be asked.

Reversible mode computes in fixed point. That is finer than float32, and in float64 as good for heavy ball (1e-11 over
1,000 steps), but a rule that divides by the root of a second moment magnifies its resolution where gradients are tiny:
Adam and AdamW differed by 1e-9 to 2.5e-6 over 100 to 1,000 steps of digits. So `FIXED_POINT` passes between it and
other modes in float64.

Products of a lower precision round more, and so do the modes differ: in bf16 by 1e-4 to 3e-2 over 20 to 100 steps of
digits with a small perceptron, by more where the loss had not yet begun to fall. How far a precision is from float32
is another question; `compare` answers it by one more hypergradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperopt_cli.modes import Hypergradient
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Precision

FLOOR = 1e-3
# of the parameters, or of the inner gradient's products where that is lower
Kind = torch.dtype | Precision
TOLERANCES: dict[Kind, float] = {torch.float64: 1e-8, torch.float32: 1e-3, "tf32": 2e-2, "bf16": 1e-1}
FIXED_POINT = 1e-5


@dataclass(frozen=True)
class Difference:
    """Relative differences from the reference mode.

    Attributes:
        validation_loss: the difference of E.
        params: the difference of w_T.
        hypergradient: the difference of the derivative in each hyperparameter.
    """

    validation_loss: float
    params: float
    hypergradient: dict[str, float]

    @classmethod
    def of(cls, result: Hypergradient, reference: Hypergradient) -> "Difference":
        """Returns the differences of a result from the reference mode's."""
        return cls(
            validation_loss=relative_difference(result.value, reference.value),
            params=relative_difference(_flat(result.params), _flat(reference.params)),
            hypergradient={key: relative_difference(result.grad[key], x) for key, x in reference.grad.items()},
        )

    @property
    def largest(self) -> float:
        """The largest difference of any hyperparameter's derivative."""
        return max(self.hypergradient.values())

    def beyond(self, tolerance: float) -> dict[str, float]:
        """Returns everything that differs by more than `tolerance`, named in words, with its difference."""
        named = {
            "the validation loss": self.validation_loss,
            "the final parameters": self.params,
            **{f"the hypergradient of {name}": value for name, value in self.hypergradient.items()},
        }
        return {what: value for what, value in named.items() if not value <= tolerance}


def relative_difference(x: Tensor, reference: Tensor) -> float:
    """Returns `|x - reference| / max(|reference|, FLOOR)`, in float64.

    >>> relative_difference(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0]))  # 1 / sqrt(34)
    0.17149858514250882
    """
    x, reference = x.detach().cpu().double(), reference.detach().cpu().double()
    norms = torch.linalg.vector_norm(x - reference), torch.linalg.vector_norm(reference)
    return float(norms[0]) / max(float(norms[1]), FLOOR)


def tolerance_for(kind: Kind, given: float | None, fixed_point: bool) -> float:
    """Returns the tolerance that was given, or else the one of `kind`, for two modes.

    Raises:
        ValueError: there is none for `kind`, or the given one is negative.
    """
    if given is None and kind not in TOLERANCES:
        raise ValueError(f"tolerance: parameters of {kind} have no default; give the relative difference that passes")
    allowed = TOLERANCES[kind] if given is None else given
    if not allowed >= 0:
        raise ValueError(f"tolerance: got {given}; must be at least 0")
    return max(allowed, FIXED_POINT) if fixed_point and given is None else allowed


def coarsest(params: Params) -> torch.dtype:
    """Returns the dtype of the parameters; of several dtypes, the one that rounds most."""
    return max((w.dtype for w in params.values()), key=lambda dtype: torch.finfo(dtype).eps)


def _flat(params: Params) -> Tensor:
    return torch.cat([w.flatten().double() for w in params.values()])
