"""The dense Hessian, as a check: every row of the Jacobian of the gradient, then one product with the columns.

    J = [d2L/dw2, d2L/dw dlambda]  [P, P + Q],      g'_k = J (w'_k, lambda'_k)

Row i is one double backward of g_i. Nothing is assumed to be symmetric, unlike in `reverse_over_reverse`. Cost: P
double backwards a step, whatever K; memory: P (P + Q) numbers.
"""

import torch
from torch.utils._pytree import tree_leaves

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import differentiable_gradient, pull
from hyperopt_cli.engines.base import Tangents
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers.base import Params, StepHyper

MAX_PARAMETERS = 2000


def dense(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
    """Takes the tangents of K columns by the whole Jacobian of the gradient, [P, P + Q].

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.

    Raises:
        UsageError: the model has more than `MAX_PARAMETERS` parameters.
    """
    num_parameters = sum(w.numel() for w in params.values())
    if num_parameters > MAX_PARAMETERS:
        raise UsageError(
            f"engine dense: the model has {num_parameters:,} parameters; allowed are {MAX_PARAMETERS:,}, for it keeps "
            "the whole Hessian and is there as a check: use auto, or any other engine"
        )
    value, g, primals, inputs = differentiable_gradient(loss, params, hyper)
    in_w, by_hyper = g[: len(params)], g[len(params) :]
    with torch.enable_grad():
        elements = torch.cat([d.flatten() for d in in_w]).unbind()
    rows = [torch.cat([x.flatten() for x in pull(d, inputs, retain=True)]) for d in elements]
    dots = torch.cat(
        [x.reshape(x.shape[0], -1) for x in [*w_dot.values(), *tree_leaves(hyper_dot)]], dim=1
    )  # [K, P + Q]
    columns = torch.split(dots @ torch.stack(rows).T, [w.numel() for w in params.values()], dim=1)
    grads = torch.cat([d.detach().flatten() for d in [*in_w, *by_hyper]])
    g_dot = {name: part.to(w.dtype).view(-1, *w.shape) for (name, w), part in zip(params.items(), columns, strict=True)}
    return Tangents(value.detach(), primals, dots @ grads, g_dot)
