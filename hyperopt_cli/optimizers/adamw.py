"""AdamW: Adam with decoupled weight decay, in `torch.optim.AdamW`'s convention.

    w       <- (1 - lr weight_decay) w        before Adam's step, whose gradient stays as it is

Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2.
"""

from dataclasses import dataclass
from types import SimpleNamespace

from torch import Tensor

from hyperopt_cli.optimizers.adam import Adam


@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW; arguments as `Adam`, with `weight_decay` decoupled from the gradient (default 0.01)."""

    weight_decay: float = 1e-2

    @staticmethod
    def decay(w: Tensor, gradient: Tensor, a: SimpleNamespace) -> tuple[Tensor, Tensor]:
        """w after decoupled decay, and the gradient as it is."""
        return w - a.lr * a.weight_decay * w, gradient
