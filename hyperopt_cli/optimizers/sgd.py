"""SGD with momentum (heavy ball), dampening, Nesterov's variant and L2 weight decay, in `torch.optim.SGD`'s convention.

    d        = g + weight_decay w
    m_{t+1}  = momentum m_t + (1 - dampening) d        (the first step takes d whole)
    w_{t+1}  = w - lr m_{t+1}                          (nesterov: w - lr (d + momentum m_{t+1}))

Polyak 1964; Nesterov's form as in Sutskever et al. 2013, http://proceedings.mlr.press/v28/sutskever13.html, eqs. 3-4,
rewritten at the look-ahead point as PyTorch does. The learning rate stands outside of the buffer.
"""

from dataclasses import dataclass
from typing import ClassVar

from hyperopt_cli.optimizers.base import InnerOptimizer, Params, Slots, StepHyper, decayed, zeros


@dataclass(frozen=True)
class SGD(InnerOptimizer):
    """Stochastic gradient descent.

    Args:
        lr: learning rate.
        momentum: factor of the buffer. Where it is 0 and no hyperparameter drives it, there is no buffer; driven, the
            value 0 is differentiated like any other.
        dampening: share of the gradient that the buffer does not take, from the second step on. As in `torch.optim`,
            it has no effect without a buffer.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: Nesterov's variant; needs a dampening of 0.
    """

    elementwise: ClassVar[bool] = True

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuses what `torch.optim` refuses."""
        super().__post_init__()
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"nesterov: got {self.nesterov!r}; must be true or false")
        if self.nesterov and self.dampening != 0.0:
            raise ValueError(
                f"dampening: got {self.dampening} with nesterov; Nesterov's variant needs a dampening of 0"
            )

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        """`momentum_buffer`, unless momentum is 0 and nothing drives it."""
        if self.nesterov and "dampening" in driven:
            raise ValueError("dampening: driven by a hyperparameter; Nesterov's variant needs a dampening of 0")
        if self.momentum == 0.0 and "momentum" not in driven:
            if self.nesterov:
                raise ValueError("nesterov: needs a momentum above 0, or one that a hyperparameter drives")
            return {}
        return {"momentum_buffer": zeros(params)}

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        """One step; see the module's equations."""
        new: Params = {}
        buffers: Params = {}
        for name, w in params.items():
            a = self.arguments(hyper, name, w)
            d = decayed(grads[name], a.weight_decay, w)
            if slots:
                taken = 1 - a.dampening * (step > 0)
                m = buffers[name] = a.momentum * slots["momentum_buffer"][name] + taken * d
                d = d + a.momentum * m if self.nesterov else m
            new[name] = w - a.lr * d
        return new, dict.fromkeys(slots, buffers)
