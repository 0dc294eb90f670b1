"""Which layers are left to cuDNN on a CUDA device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hyperopt_cli.dynamics.cudnn import WithoutCudnn, differentiable_on_cuda

PICTURES, ROWS, LINES = torch.randn(3, 2, 4, 4), torch.randn(3, 4, 2), torch.randn(3, 2)
WITHOUT: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "lstm": (lambda: nn.LSTM(2, 3), ROWS),
    "gru of two layers, both ways": (lambda: nn.GRU(2, 3, 2, bidirectional=True), ROWS),
    "tanh": (lambda: nn.RNN(2, 3), ROWS),
    "relu": (lambda: nn.RNN(2, 3, nonlinearity="relu"), ROWS),
    "batch norm of lines": (lambda: nn.BatchNorm1d(2, track_running_stats=False), LINES),
    "batch norm of pictures": (lambda: nn.BatchNorm2d(2, track_running_stats=False), PICTURES),
    "instance norm": (lambda: nn.InstanceNorm2d(2, affine=True), PICTURES),
}
WITH: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolution": (lambda: nn.Conv2d(2, 2, 3), PICTURES),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 2, 3), PICTURES),
    "group norm": (lambda: nn.GroupNorm(2, 2), PICTURES),
    "linear": (lambda: nn.Linear(2, 2), LINES),
}


class Enabled(TorchDispatchMode):
    """Whether cuDNN may be used, at each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[bool] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if any(word in name for word in ("norm", "convolution", "mm", "tanh", "relu", "sigmoid", "rnn_layer")):
            self.seen.add(torch.backends.cudnn.enabled)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer", WITHOUT)
def test_a_layer_of_which_cudnn_lacks_a_derivative_is_not_left_to_it(layer: str) -> None:
    make, x = WITHOUT[layer]
    module = make()
    with Enabled() as enabled, WithoutCudnn():
        module(x)
    assert enabled.seen == {False}
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("layer", WITH)
def test_any_other_layer_is_left_to_it(layer: str) -> None:
    make, x = WITH[layer]
    module = make()
    with Enabled() as enabled, WithoutCudnn():
        module(x)
    assert enabled.seen == {True}


def test_who_had_switched_it_off_has_it_off() -> None:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        with WithoutCudnn():
            functional.batch_norm(LINES, None, None, training=True)
        assert not torch.backends.cudnn.enabled
    finally:
        torch.backends.cudnn.enabled = before


def test_it_is_on_again_after_an_error() -> None:
    with WithoutCudnn(), pytest.raises(ValueError, match="more than 1 value per channel"):
        functional.batch_norm(torch.ones(1, 2), None, None, training=True)
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("layer", ["gru of two layers, both ways", "batch norm of pictures", "convolution"])
def test_a_loss_is_the_same_with_its_derivatives(layer: str) -> None:
    make, x = {**WITHOUT, **WITH}[layer]
    module = make()
    params = {name: w.detach() for name, w in module.named_parameters()}

    def loss(params: Any, hyper: Any) -> Tensor:
        out = functional_call(module, params, (x,))
        return (out[0] if isinstance(out, tuple) else out).pow(3).mean()

    own = differentiable_on_cuda(loss)
    for name, got in grad(own)(params, {}).items():
        assert torch.equal(got, grad(loss)(params, {})[name])
    got, want = (jvp(lambda w, f=f: f(w, {}), (params,), (params,)) for f in (own, loss))
    assert torch.equal(got[1], want[1])
