"""Folded: forward over reverse in which the K columns pass through each operator together, by rules of our own.

The K matrix products or convolutions with the tangents of an operator's argument are taken in one call, a partial
derivative of an elementwise operator is taken once for all columns, and tangents stay in memory as the product left
them. The rules are in `duals/`.

Cost: 1 gradient + K times what the products of a column take: for each layer one with the tangents of its input and one
with those of its kernel there, two and two back. Memory: K + 1 times a gradient's.
"""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.engines.base import Tangents
from hyperopt_cli.engines.duals import Dual, dot, primal
from hyperopt_cli.optimizers.base import Params, StepHyper


def folded(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
    """Takes the tangents of K columns with every operator of the gradient called once for all of them.

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.
    """
    columns = next(iter(w_dot.values())).shape[0]
    with torch.enable_grad():
        w: Params = {name: Dual(p, w_dot[name]).requires_grad_() for name, p in params.items()}
        value = loss(w, tree_map(Dual, hyper, hyper_dot))
        grads = torch.autograd.grad(value, list(w.values()), materialize_grads=True)
    named = dict(zip(w, grads, strict=True))
    return Tangents(
        primal(value).detach(),
        {name: primal(g) for name, g in named.items()},
        _tangents(value, columns),
        {name: _tangents(g, columns) for name, g in named.items()},
    )


def _tangents(x: Tensor, columns: int) -> Tensor:
    """[K, *shape]: zero where nothing moves x."""
    tangents = dot(x)
    return primal(x).new_zeros(columns, *x.shape) if tangents is None else tangents
