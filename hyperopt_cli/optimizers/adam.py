"""Adam with L2 weight decay, in `torch.optim.Adam`'s convention.

    d       = g + weight_decay w
    m_{t+1} = beta1 m + (1 - beta1) d
    v_{t+1} = beta2 v + (1 - beta2) d^2
    w_{t+1} = w - lr / (1 - beta1^{t+1})  m_{t+1} / (sqrt(v_{t+1}) / sqrt(1 - beta2^{t+1}) + eps)

Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1. With a beta that changes over the steps, the bias
corrections take its present value, as `torch.optim` does.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hyperopt_cli.optimizers.base import (
    WEIGHTS,
    Arguments,
    Coupling,
    Factor,
    InnerOptimizer,
    Params,
    Share,
    Slots,
    decayed,
    itself,
    sqrt,
    with_more,
    zeros,
)


@dataclass(frozen=True)
class Adam(InnerOptimizer):
    """The Adam update rule, as `torch.optim.Adam` takes it.

    Args:
        lr: learning rate.
        beta1: decay of the first moment (`betas[0]` of `torch.optim`).
        beta2: decay of the second moment (`betas[1]`).
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient.
    """

    elementwise: ClassVar[bool] = True
    rates: ClassVar[tuple[float, ...]] = (1e-4, 1e-3, 1e-2, 1e-1)
    taken_from_1: ClassVar[tuple[str, ...]] = ("beta1", "beta2")
    contraction: ClassVar[Factor | None] = None  # of w itself

    lr: float = 1e-3
    beta1: Share = 0.9
    beta2: Share = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        """Makes the slots of the first and the second moment, both zero."""
        return {"exp_avg": zeros(params), "exp_avg_sq": zeros(params)}

    def coefficients(self, arguments: Arguments, step: int) -> Arguments:
        """Adds the bias corrections: `rate` = lr / (1 - beta1^{t+1}) and `spread` = sqrt(1 - beta2^{t+1})."""
        rate = arguments.lr / (1 - arguments.beta1 ** (step + 1))
        return with_more(arguments, rate=rate, spread=(1 - arguments.beta2 ** (step + 1)) ** 0.5)

    def drive(self, w: Tensor, gradient: Tensor, arguments: Arguments) -> Tensor:
        """Returns d = g + weight_decay w."""
        return decayed(gradient, arguments.weight_decay, w)

    def couplings(self, slots: Collection[str]) -> tuple[Coupling, ...]:
        """Returns the couplings of the two moments, then that of w; see the module's equations."""
        return (
            Coupling("exp_avg", _first_moment, itself("beta1"), radix=62),
            Coupling("exp_avg_sq", _second_moment, itself("beta2"), radix=76, least_radix=-20),
            Coupling(WEIGHTS, _along_moments, self.contraction),
        )


def _first_moment(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return (1 - a.beta1) * d


def _second_moment(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return (1 - a.beta2) * d * d


def _along_moments(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.rate * x["exp_avg"] / (sqrt(x["exp_avg_sq"]) / a.spread + a.eps)
