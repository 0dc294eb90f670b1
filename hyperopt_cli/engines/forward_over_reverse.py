"""Forward over reverse: the tangent of the gradient.

    g'_k = d/de grad L(w + e w'_k, lambda + e lambda'_k)  at e = 0

Pearlmutter 1994, "Fast exact multiplication by the Hessian", https://doi.org/10.1162/neco.1994.6.1.147.

`forward_over_reverse` is `vmap(jvp(grad))`, K columns at once: the gradient once, memory for K columns.
`forward_over_reverse_loop` is one `jvp(grad)` a column: K gradients, memory for one column. The loop needs
no batching rule, and grouped convolutions that `vmap` makes of the columns can be slower than it.

The mean squared error is taken by its definition: of torch's own operator the gradient has no tangent where the target
has none ("ZeroTensors are immutable"). A model's formats of memory (channels_last) are left out: vmap cannot set them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import push_columns
from hyperopt_cli.engines.base import Tangents
from hyperopt_cli.optimizers.base import Params, StepHyper

FORMATS = (torch.channels_last, torch.channels_last_3d)


def forward_over_reverse(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
    """Takes the tangents of K columns by `vmap(jvp(grad))`; one column is a plain jvp.

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.
    """
    return _tangents(loss, params, hyper, w_dot, hyper_dot, None)


def forward_over_reverse_loop(
    loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper
) -> Tangents:
    """Takes the tangents of K columns by K times `jvp(grad)`.

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.
    """
    return _tangents(loss, params, hyper, w_dot, hyper_dot, 1)


def _tangents(
    loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper, at_once: int | None
) -> Tangents:
    with _Batchable():
        (g, value), (g_dot, value_dot) = push_columns(
            grad_and_value(loss), (params, hyper), (w_dot, hyper_dot), at_once
        )
    return Tangents(value, g, value_dot, g_dot)


class _Batchable(TorchFunctionMode):
    """`functional.mse_loss` as (input - target)^2, reduced, and no format of memory, which vmap cannot set."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, or what stands in for it."""
        given = {name: value for name, value in (kwargs or {}).items() if value is not None}
        if func is functional.mse_loss and len(args) <= 2 and given.keys() <= {"input", "target", "reduction"}:
            return _squares(*args, **given)
        if given.get("memory_format") in FORMATS and args:
            del given["memory_format"]
            return func(*args, **given) if given or len(args) > 1 or func is not Tensor.to else args[0]
        return func(*args, **(kwargs or {}))


def _squares(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    squares = (input - target).square()
    return squares if reduction == "none" else squares.mean() if reduction == "mean" else squares.sum()
