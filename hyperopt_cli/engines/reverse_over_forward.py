"""Reverse over forward: the gradient of the loss's tangent.

    g'_k = grad_w (dL w'_k + dL/dlambda lambda'_k)

It differentiates torch's forward derivatives, some of which hide from autograd that they depend on w: through layer,
batch and instance normalisation and some of linalg the result is silently wrong
(https://github.com/pytorch/pytorch/issues/196699), so that no run may take it; `bench hvp` measures it beside the
others. Cost: a gradient, and a tangent with its pullback for each column; memory: the graphs of a chunk.
"""

from typing import Any

from torch import Tensor
from torch.func import grad_and_value, jvp, vmap

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.engines.base import Tangents
from hyperopt_cli.optimizers.base import Params, StepHyper


def reverse_over_forward(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
    """Takes the tangents of K columns by `vmap(grad(jvp))`, which is silently wrong for some layers.

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.
    """
    value, g = gradient(loss, params, hyper)

    def tangent(w: Params, dot: Params, entry_dot: StepHyper) -> Tensor:
        out: Tensor = jvp(loss, (w, hyper), (dot, entry_dot))[1]
        return out

    column: Any = grad_and_value(tangent)
    g_dot, value_dot = vmap(column, in_dims=(None, 0, 0), randomness="same")(params, w_dot, hyper_dot)
    return Tangents(value, g, value_dot, g_dot)
