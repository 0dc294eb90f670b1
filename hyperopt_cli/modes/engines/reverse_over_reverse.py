"""Reverse over reverse: the graph of the gradient once, then one double backward a column.

It is taken of `<g, w'_k> + <dL/dlambda, lambda'_k>`, whose gradient in w is g'_k because the Hessian is symmetric.
"""

import torch
from torch.utils._pytree import tree_flatten

from hyperopt_cli.modes.engines.base import Loss, Tangents, differentiable_gradient, pull
from hyperopt_cli.optimizers.base import Params, StepHyper


def reverse_over_reverse(
    loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper, chunk_size: int | None
) -> Tangents:
    """K columns by K double backwards through one graph of the gradient; `chunk_size` has no effect."""
    value, g, primals, inputs = differentiable_gradient(loss, params, hyper)
    names, num_columns = list(params), next(iter(w_dot.values())).shape[0]
    dots = [*w_dot.values(), *tree_flatten(hyper_dot)[0]]
    columns, value_dots = [], []
    for k in range(num_columns):
        with torch.enable_grad():
            along = sum(((d * x[k]).sum() for d, x in zip(g, dots, strict=True)), value.new_zeros(()))
        value_dots.append(along.detach())
        columns.append(pull(along, inputs[: len(names)], retain=k < num_columns - 1))
    g_dot = {name: torch.stack([column[i] for column in columns]) for i, name in enumerate(names)}
    return Tangents(value.detach(), primals, torch.stack(value_dots), g_dot)
