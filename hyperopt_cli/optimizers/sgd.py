"""SGD with momentum (heavy ball), dampening, Nesterov's variant and L2 weight decay, in `torch.optim.SGD`'s convention.

    d        = g + weight_decay w
    m_{t+1}  = momentum m_t + (1 - dampening) d        (the first step takes d whole)
    w_{t+1}  = w - lr m_{t+1}                          (nesterov: w - lr (d + momentum m_{t+1}))

Polyak 1964; Nesterov's form as in Sutskever et al. 2013, http://proceedings.mlr.press/v28/sutskever13.html, eqs. 3-4,
rewritten at the look-ahead point as PyTorch does. The learning rate stands outside of the buffer.
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
    with_more,
    zeros,
)


@dataclass(frozen=True)
class SGD(InnerOptimizer):
    """Stochastic gradient descent, as `torch.optim.SGD` takes it.

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
    momentum: Share = 0.0
    dampening: Share = 0.0
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
        """Makes `momentum_buffer`, unless momentum is 0 and nothing drives it.

        Raises:
            ValueError: Nesterov's variant would have a driven dampening, or no momentum.
        """
        if self.nesterov and "dampening" in driven:
            raise ValueError("dampening: driven by a hyperparameter; Nesterov's variant needs a dampening of 0")
        if self.momentum == 0.0 and "momentum" not in driven:
            if self.nesterov:
                raise ValueError("nesterov: needs a momentum above 0, or one that a hyperparameter drives")
            return {}
        return {"momentum_buffer": zeros(params)}

    def coefficients(self, arguments: Arguments, step: int) -> Arguments:
        """Adds `taken`, the share of the gradient that the buffer takes: 1 at t = 0, then 1 - dampening."""
        later = (step > 0).double() if isinstance(step, Tensor) else step > 0
        return with_more(arguments, taken=1 - arguments.dampening * later)

    def drive(self, w: Tensor, gradient: Tensor, arguments: Arguments) -> Tensor:
        """Returns d = g + weight_decay w."""
        return decayed(gradient, arguments.weight_decay, w)

    def couplings(self, slots: Collection[str]) -> tuple[Coupling, ...]:
        """Returns the coupling of the buffer, if there is one, then that of w; see the module's equations."""
        if not slots:
            return (Coupling(WEIGHTS, _plain),)
        return (
            Coupling("momentum_buffer", _taken, itself("momentum")),
            Coupling(WEIGHTS, _look_ahead if self.nesterov else _along_buffer),
        )


def _taken(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return a.taken * d


def _along_buffer(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.lr * x["momentum_buffer"]


def _look_ahead(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.lr * (d + a.momentum * x["momentum_buffer"])


def _plain(x: Params, d: Tensor, a: Arguments) -> Tensor:
    return -a.lr * d
