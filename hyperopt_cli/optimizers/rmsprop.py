"""RMSprop, plain or centred, with momentum and L2 weight decay, in `torch.optim.RMSprop`'s convention.

    d       = g + weight_decay w
    v_{t+1} = alpha v + (1 - alpha) d^2
    a_{t+1} = alpha a + (1 - alpha) d                  (centred only; then v - a^2 stands for v below)
    u       = d / (sqrt(v_{t+1}) + eps)
    m_{t+1} = momentum m + u
    w_{t+1} = w - lr m_{t+1}                           (w - lr u without a momentum slot)

Hinton 2012, lecture 6e of "Neural Networks for Machine Learning"; centred as in Graves 2013,
https://arxiv.org/abs/1308.0850, eqs. 38-45, with eps outside of the root.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hyperopt_cli.optimizers.base import (
    WEIGHTS,
    Arguments,
    Coupling,
    InnerOptimizer,
    Params,
    Share,
    Slots,
    decayed,
    itself,
    sqrt,
    zeros,
)


@dataclass(frozen=True)
class RMSprop(InnerOptimizer):
    """The RMSprop update rule, as `torch.optim.RMSprop` takes it.

    Args:
        lr: learning rate.
        alpha: decay of the second moment.
        eps: added to its root.
        weight_decay: L2 penalty, added to the gradient.
        momentum: factor of the buffer; without one where it is 0 and nothing drives it.
        centered: divide by the estimated standard deviation instead of the root of the second moment.
    """

    elementwise: ClassVar[bool] = True
    rates: ClassVar[tuple[float, ...]] = (1e-4, 1e-3, 1e-2, 1e-1)
    taken_from_1: ClassVar[tuple[str, ...]] = ("alpha",)

    lr: float = 1e-2
    alpha: Share = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: Share = 0.0
    centered: bool = False

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        """Makes `square_avg`, and `grad_avg` if centred; `momentum_buffer` unless momentum is 0 and not driven."""
        names = ["square_avg"]
        names += ["grad_avg"] if self.centered else []
        names += ["momentum_buffer"] if self.momentum != 0.0 or "momentum" in driven else []
        return {slot: zeros(params) for slot in names}

    def drive(self, w: Tensor, gradient: Tensor, arguments: Arguments) -> Tensor:
        """Returns d = g + weight_decay w."""
        return decayed(gradient, arguments.weight_decay, w)

    def couplings(self, slots: Collection[str]) -> tuple[Coupling, ...]:
        """Returns the couplings of the averages, of the buffer, then that of w; see the module's equations."""
        averages = [Coupling("square_avg", _second_moment, itself("alpha"), radix=76, least_radix=-20)]
        if self.centered:
            averages.append(Coupling("grad_avg", _first_moment, itself("alpha"), radix=62))
        if "momentum_buffer" not in slots:
            return (*averages, Coupling(WEIGHTS, _along_gradient))
        buffer = Coupling("momentum_buffer", _scaled, itself("momentum"))
        return (*averages, buffer, Coupling(WEIGHTS, _along_buffer))


def _second_moment(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return (1 - a.alpha) * d * d


def _first_moment(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return (1 - a.alpha) * d


def _scaled(x: Params, d: Tensor, a: Arguments) -> Tensor:
    v = x["square_avg"]
    if "grad_avg" in x:
        v = v - x["grad_avg"] * x["grad_avg"]
    return d / (sqrt(v) + a.eps)


def _along_gradient(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.lr * _scaled(x, d, a)


def _along_buffer(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.lr * x["momentum_buffer"]
