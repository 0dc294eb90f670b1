"""Adam with L2 weight decay, in `torch.optim.Adam`'s convention.

    d       = g + weight_decay w
    m_{t+1} = beta1 m + (1 - beta1) d
    v_{t+1} = beta2 v + (1 - beta2) d^2
    w_{t+1} = w - lr / (1 - beta1^{t+1})  m_{t+1} / (sqrt(v_{t+1}) / sqrt(1 - beta2^{t+1}) + eps)

Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1. With a beta that changes over the steps, the bias
corrections take its present value, as `torch.optim` does.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

from torch import Tensor

from hyperopt_cli.optimizers.base import InnerOptimizer, Params, Slots, StepHyper, decayed, sqrt, zeros


@dataclass(frozen=True)
class Adam(InnerOptimizer):
    """Adam.

    Args:
        lr: learning rate.
        beta1: decay of the first moment (`betas[0]` of `torch.optim`).
        beta2: decay of the second moment (`betas[1]`).
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient.
    """

    elementwise: ClassVar[bool] = True
    taken_from_1: ClassVar[tuple[str, ...]] = ("beta1", "beta2")

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        """The two moments."""
        return {"exp_avg": zeros(params), "exp_avg_sq": zeros(params)}

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        """One step; see the module's equations."""
        new: Params = {}
        moments: Slots = {"exp_avg": {}, "exp_avg_sq": {}}
        for name, w in params.items():
            a = self.arguments(hyper, name, w)
            w, d = self.decay(w, grads[name], a)
            m = moments["exp_avg"][name] = a.beta1 * slots["exp_avg"][name] + (1 - a.beta1) * d
            v = moments["exp_avg_sq"][name] = a.beta2 * slots["exp_avg_sq"][name] + (1 - a.beta2) * d * d
            corrected = sqrt(v) / (1 - a.beta2 ** (step + 1)) ** 0.5
            new[name] = w - a.lr / (1 - a.beta1 ** (step + 1)) * m / (corrected + a.eps)
        return new, moments

    @staticmethod
    def decay(w: Tensor, gradient: Tensor, a: SimpleNamespace) -> tuple[Tensor, Tensor]:
        """w and the gradient after weight decay."""
        return w, decayed(gradient, a.weight_decay, w)
