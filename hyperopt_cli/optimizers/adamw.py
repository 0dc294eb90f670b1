"""AdamW: Adam with decoupled weight decay, in `torch.optim.AdamW`'s convention.

    w_{t+1} = (1 - lr weight_decay) w - Adam's step, whose gradient stays as it is

Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hyperopt_cli.optimizers.adam import Adam
from hyperopt_cli.optimizers.base import Arguments, Factor


def _decay_for(arguments: Arguments, contraction: Any) -> Any:
    """Returns the weight decay of that contraction; its own where the contraction is already there (a rate of 0)."""
    return arguments.weight_decay + ((1 - arguments.lr * arguments.weight_decay) - contraction) / arguments.lr


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled decay; its arguments are those of `Adam`, with `weight_decay` 0.01 by default."""

    contraction: ClassVar[Factor | None] = Factor(
        "1 - lr weight_decay", "weight_decay", lambda a: 1 - a.lr * a.weight_decay, _decay_for
    )

    weight_decay: float = 1e-2

    def drive(self, w: Tensor, gradient: Tensor, arguments: Arguments) -> Tensor:
        """Returns the gradient itself: the decay acts on w."""
        return gradient
