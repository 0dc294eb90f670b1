"""Layers that are not left to cuDNN, whose operators lack derivatives that a hypergradient takes.

Its recurrent layers have no second derivative. Its batch normalisation, which instance normalisation takes too, hands
the statistics of the batch to its way back, and torch has no derivative of these: an engine that goes through both
operator by operator would take them for constants. Torch's own kernels, as on a CPU, have both; but on a CPU oneDNN's
LSTM has neither. Convolutions stay with cuDNN. Where the loss is evaluated it is chosen; the backward follows from it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hyperopt_cli.dynamics.chunked_loss import Loss
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
    """Returns the same loss, evaluated without cuDNN in these layers."""

    def own(params: Params, hyper: StepHyper) -> Tensor:
        with WithoutCudnn():
            return loss(params, hyper)

    return own


class WithoutCudnn(TorchFunctionMode):
    """Inside, these layers are not computed by cuDNN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, without cuDNN if it is one of `WITHOUT`."""
        if func not in WITHOUT:
            return func(*args, **(kwargs or {}))
        cudnn: Any = torch.backends.cudnn
        before, cudnn.enabled = cudnn.enabled, False
        try:
            return func(*args, **(kwargs or {}))
        finally:
            cudnn.enabled = before


def without_onednn(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls a function without oneDNN, whose LSTM has no second derivative and no forward one."""
    onednn: Any = torch._C
    before = onednn._get_mkldnn_enabled()
    onednn._set_mkldnn_enabled(False)
    try:
        return func(*args, **kwargs)
    finally:
        onednn._set_mkldnn_enabled(before)
