"""Reverse over forward: the gradient of the loss's tangent.

    g'_k = grad_w (dL w'_k + dL/dlambda lambda'_k)

It differentiates torch's forward derivatives, some of which hide from autograd that they depend on w: through layer,
batch and instance normalisation and some of linalg the result is silently wrong
(https://github.com/pytorch/pytorch/issues/196699), so that no run may take it; `bench hvp` measures it beside the
others. Cost: a gradient, and a tangent with its pullback for each column; memory: the graphs of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap
from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.engines.base import Tangents
from hyperopt_cli.optimizers.base import Params, StepHyper


def reverse_over_forward(
    loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper, chunk_size: int | None
) -> Tangents:
    """K columns by `vmap(grad(jvp))`, `chunk_size` of them at once."""
    value, g = gradient(loss, params, hyper)

    def tangent(w: Params, dot: Params, entry_dot: StepHyper) -> Tensor:
        out: Tensor = jvp(loss, (w, hyper), (dot, entry_dot))[1]
        return out

    column: Any = grad_and_value(tangent)
    num_columns = next(iter(w_dot.values())).shape[0]
    size, parts = chunk_size or num_columns, []
    for k in range(0, num_columns, size):
        chunk = tree_map(lambda x: x[k : k + size], (w_dot, hyper_dot))  # noqa: B023
        parts.append(vmap(column, in_dims=(None, 0, 0), randomness="same")(params, *chunk))
    g_dot, value_dot = parts[0] if len(parts) == 1 else tree_map(lambda *each: torch.cat(each), *parts)
    return Tangents(value, g, value_dot, g_dot)
