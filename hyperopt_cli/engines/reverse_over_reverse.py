"""Reverse over reverse: the graph of the gradient once, then its pullback along each column.

It is taken of `<g, w'_k> + <dL/dlambda, lambda'_k>`, whose gradient in w is g'_k because the Hessian is symmetric.

`reverse_over_reverse` pulls back all columns at once, by `torch.func.vmap`: the `is_grads_batched` of
`torch.autograd.grad` uses torch's older vmap, which takes convolutions, normalisations and softmax column by column in
silence. `reverse_over_reverse_loop` is one double backward a column: what one writes without vmap. It needs only second
derivatives in reverse, which nearly every operator has, and is the reference that other engines are checked against.
"""

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import differentiable_gradient, pull
from hyperopt_cli.engines.base import Tangents
from hyperopt_cli.optimizers.base import Params, StepHyper


def reverse_over_reverse(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
    """Takes the tangents of K columns by batched double backwards through one graph of the gradient.

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.
    """
    value, g, primals, inputs = differentiable_gradient(loss, params, hyper)
    dots = [*w_dot.values(), *tree_flatten(hyper_dot)[0]]
    num_columns = dots[0].shape[0]
    columns = _pulled(g, inputs[: len(params)], dots)
    value_dots = sum((_along(d.detach(), x) for d, x in zip(g, dots, strict=True)), value.new_zeros(num_columns))
    return Tangents(value.detach(), primals, value_dots, dict(zip(params, columns, strict=True)))


def reverse_over_reverse_loop(
    loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper
) -> Tangents:
    """Takes the tangents of K columns by K double backwards through one graph of the gradient.

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.
    """
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


def _pulled(g: list[Tensor], inputs: list[Tensor], dots: list[Tensor]) -> list[Tensor]:
    """Pulls the columns `dots` back through the graph of g, `[K, *shape]` for each input."""
    num_columns = dots[0].shape[0]
    connected = [i for i, d in enumerate(g) if d.requires_grad]
    if not connected:  # a loss that is linear in w
        return [x.new_zeros(num_columns, *x.shape) for x in inputs]
    outputs, along = [g[i] for i in connected], [dots[i] for i in connected]

    def pulled(*column: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, inputs, column, materialize_grads=True)

    if num_columns == 1:
        return [x[None] for x in pulled(*(dot[0] for dot in along))]
    return list(vmap(pulled)(*along))


def _along(d: Tensor, x: Tensor) -> Tensor:
    """Returns <d, x_k> for every column, [K]."""
    return x.reshape(x.shape[0], -1) @ d.flatten().to(x)
