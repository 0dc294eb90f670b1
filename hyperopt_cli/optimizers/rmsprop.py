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

from dataclasses import dataclass
from typing import ClassVar

from hyperopt_cli.optimizers.base import InnerOptimizer, Params, Slots, StepHyper, decayed, sqrt, zeros


@dataclass(frozen=True)
class RMSprop(InnerOptimizer):
    """RMSprop.

    Args:
        lr: learning rate.
        alpha: decay of the second moment.
        eps: added to its root.
        weight_decay: L2 penalty, added to the gradient.
        momentum: factor of the buffer; without one where it is 0 and nothing drives it.
        centered: divide by the estimated standard deviation instead of the root of the second moment.
    """

    elementwise: ClassVar[bool] = True
    taken_from_1: ClassVar[tuple[str, ...]] = ("alpha",)

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        """`square_avg`; `grad_avg` if centred; `momentum_buffer` unless momentum is 0 and nothing drives it."""
        names = ["square_avg"]
        names += ["grad_avg"] if self.centered else []
        names += ["momentum_buffer"] if self.momentum != 0.0 or "momentum" in driven else []
        return {slot: zeros(params) for slot in names}

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        """One step; see the module's equations."""
        new: Params = {}
        kept: Slots = {slot: {} for slot in slots}
        for name, w in params.items():
            a = self.arguments(hyper, name, w)
            d = decayed(grads[name], a.weight_decay, w)
            v = kept["square_avg"][name] = a.alpha * slots["square_avg"][name] + (1 - a.alpha) * d * d
            if self.centered:
                mean = kept["grad_avg"][name] = a.alpha * slots["grad_avg"][name] + (1 - a.alpha) * d
                v = v - mean * mean
            u = d / (sqrt(v) + a.eps)
            if "momentum_buffer" in slots:
                u = kept["momentum_buffer"][name] = a.momentum * slots["momentum_buffer"][name] + u
            new[name] = w - a.lr * u
        return new, kept
