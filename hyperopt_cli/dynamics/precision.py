"""The precision of the inner gradient's matrix products: that of the parameters, or a lower one.

| | inputs of a product or convolution | everything else |
|---|---|---|
| None | as the parameters: float32 means float32, tf32 is switched off | the same |
| tf32 | rounded to 11 bits by the device, added up in float32 | float32 |
| bf16 | rounded to 8 bits, as is the result | float32 |

What else is float32: parameters, slots, tangents, adjoints, normalisation, losses, the update rule, E and its
gradient. E decides which hyperparameters are best, is taken once where the inner gradient is taken T times, and its
gradient is what every mode begins or ends with: rounding there would be all loss.

bf16 is torch's autocast for the products (Micikevicius et al. 2018, "Mixed precision training",
https://arxiv.org/abs/1710.03740), with two changes. Its cache of weights is off: a cached copy would belong to the
graph of another derivative. And what comes out in bf16 goes on in float32: the forward derivatives of normalisation
layers and of attention can't have a bf16 input beside float32 tangents. The products of the gradient and of its
tangents are bf16 where the loss's are, because the derivative of a cast is a cast back. Inside torch's fused attention
the softmax is bf16 too.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Precision

AMPERE = (8, 0)
OF_GPU = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")
OF_HOST = ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def refusal(precision: Precision | None, device: torch.device) -> str | None:
    """Says why products on `device` cannot have this precision; None if they can."""
    if precision != "tf32":
        return None
    if device.type != "cuda":
        return (
            f"tf32 is a format of GPUs; on the device {device.type} torch would compute in float32: use float32 or bf16"
        )
    if torch.cuda.get_device_capability(device) < AMPERE:
        return f"{torch.cuda.get_device_name(device)} has no tf32 (Ampere was the first that has): use float32"
    return None


def check(precision: Precision | None, params: Iterable[Tensor]) -> None:
    """Refuses a precision that these parameters cannot have.

    Raises:
        UsageError: they are not all float32, or their device has no such format.
    """
    if precision is None:
        return
    for w in params:
        if w.dtype != torch.float32:
            raise UsageError(
                f"precision: got {precision}, which lowers float32, for parameters of {w.dtype}; make them float32, or "
                "leave precision out"
            )
        if (reason := refusal(precision, w.device)) is not None:
            raise UsageError(f"precision: {reason}")


@contextmanager
def products_in(precision: Precision | None) -> Iterator[None]:
    """Inside, float32 products are taken in float32, or in tf32 if that is `precision`, whatever torch's default."""
    before = _settings()
    lowered = precision == "tf32"
    each = dict.fromkeys(OF_GPU, "tf32" if lowered else "ieee") | dict.fromkeys(OF_HOST, "ieee")
    # attention's products would be float32 without the last
    _set(_Settings("high" if lowered else "highest", lowered, each, precision == "bf16"))
    try:
        yield
    finally:
        _set(before)


class _Settings(NamedTuple):
    """Torch's settings of float32 products: the older ones and the newer ones.

    Both are set, because torch refuses to read an older one where it differs from the newer ones.

    Attributes:
        matmul: older, of matrix products; None where torch refuses.
        cudnn: older, of convolutions; None where torch refuses.
        each: newer, by the operators.
        reduced_attention: whether attention of bf16 may be computed in bf16.
    """

    matmul: str | None
    cudnn: bool | None
    each: dict[str, str]
    reduced_attention: bool


def _settings() -> _Settings:
    matmul = cudnn = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    each = {name: _operators(name).fp32_precision for name in (*OF_GPU, *OF_HOST)}
    cuda: Any = torch.backends.cuda
    return _Settings(matmul, cudnn, each, cuda.fp16_bf16_reduction_math_sdp_allowed())


def _set(settings: _Settings) -> None:
    if settings.matmul is not None:
        torch.set_float32_matmul_precision(settings.matmul)
    if settings.cudnn is not None:
        torch.backends.cudnn.allow_tf32 = settings.cudnn
    for name, value in settings.each.items():
        _operators(name).fp32_precision = value
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(settings.reduced_attention)


def _operators(name: str) -> Any:
    return attrgetter(name)(torch.backends)


def in_bf16(loss: Loss, device: torch.device) -> Loss:
    """Returns the same loss with its matrix products and convolutions in bf16."""

    def lowered(params: Params, hyper: StepHyper) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False), _BackToFloat32():
            return loss(params, hyper)

    return lowered


class _BackToFloat32(TorchFunctionMode):
    """Casts to float32 what an operator returns in bf16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            return _raised(out)
        if isinstance(out, tuple | list) and any(isinstance(x, Tensor) for x in tree_leaves(out)):
            return tree_map(_raised, out)
        return out


def _raised(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype is torch.bfloat16 else x
