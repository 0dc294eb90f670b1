"""Layers that cuDNN computes without the derivatives that a hypergradient takes: torch's own kernels instead.

Of its recurrent layers there is no second derivative; of its batch normalisation's way back, which instance
normalisation takes too, no forward derivative. On a CPU the same layers are other operators, which have both.
Convolutions stay with cuDNN. What is refused here is chosen where the loss is evaluated: its way back follows from it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hyperopt_cli.modes.parts import Loss
from hyperopt_cli.optimizers.base import Params, StepHyper

WITHOUT = {
    torch.batch_norm,
    torch.gru,
    torch.instance_norm,
    torch.lstm,
    torch.rnn_relu,
    torch.rnn_tanh,
    functional.batch_norm,
    functional.instance_norm,
}


def differentiable_on_cuda(loss: Loss) -> Loss:
    """The same loss, without cuDNN in these layers."""

    def own(params: Params, hyper: StepHyper) -> Tensor:
        with WithoutCudnn():
            return loss(params, hyper)

    return own


class WithoutCudnn(TorchFunctionMode):
    """Inside, these layers are not computed by cuDNN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, as torch computes it."""
        if func not in WITHOUT:
            return func(*args, **(kwargs or {}))
        cudnn: Any = torch.backends.cudnn
        before, cudnn.enabled = cudnn.enabled, False
        try:
            return func(*args, **(kwargs or {}))
        finally:
            cudnn.enabled = before
