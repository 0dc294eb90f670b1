"""Program: forward over the list of operators that the gradient comes to.

    g'_k = Dg(w, lambda) (w'_k, lambda'_k),      g as `program/` writes it down at each step

Right where autograd is cut: a detach, a `no_grad`, a hook, a backward of one's own are in the list what they do. The
gradient has the bits of training. `program` takes K columns by `vmap(jvp)` of the list, `program_loop` one by one.

Cost: a gradient that is written down (some 30 microseconds an operator), and K tangents of the list, which count as
those of forward over reverse. Prefer `auto`, which takes it where no other is right.
"""

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import push_columns
from hyperopt_cli.engines.base import Tangents
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.program import Program, differentiable, recorded


def program(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
    """Takes the tangents of K columns by `vmap(jvp)` of the gradient's list of operators; one column is a plain jvp.

    Args:
        loss: L, `(w, lambda_t) -> []`.
        params: w, named.
        hyper: lambda_t.
        w_dot: w', named, `[K, *shape]`.
        hyper_dot: lambda'_t, like `hyper`, `[K, *shape]`.
    """
    return _tangents(loss, params, hyper, w_dot, hyper_dot, None)


def program_loop(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
    """Takes the tangents of K columns by K times `jvp` of the gradient's list of operators.

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
    written, inputs, value, g = gradient_as_program(loss, params, hyper)
    function = differentiable(written)
    primals = tuple(x.detach() for x in inputs)
    dots = (*w_dot.values(), *tree_flatten(hyper_dot)[0])
    _, (value_dot, *g_dot) = push_columns(lambda *flat: tuple(function(*flat)), primals, dots, at_once)
    return Tangents(value, g, value_dot, dict(zip(g, g_dot, strict=True)))


def gradient_as_program(loss: Loss, params: Params, hyper: StepHyper) -> tuple[Program, list[Tensor], Tensor, Params]:
    """Writes (w, lambda) -> (L, g) down as a list of operators.

    Returns:
        The list, the leaves of w and lambda that it was written down at, and L and g with the bits of training.
    """
    names, (entries, spec) = list(params), tree_flatten(hyper)
    inputs = [x.detach().requires_grad_() for x in (*params.values(), *entries)]

    def field(*flat: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            w = dict(zip(names, flat, strict=False))
            value = loss(w, tree_unflatten(list(flat[len(names) :]), spec))
            return [value, *torch.autograd.grad(value, list(w.values()), materialize_grads=True)]

    written, (value, *g) = recorded(field, inputs)
    return written, inputs, value.detach(), {name: x.detach() for name, x in zip(names, g, strict=True)}
