"""Derivatives of the inner gradient: the expensive part of every mode, and the only place that knows how to take them.

With `g(w, lambda) = grad_w L(w, lambda, batch)`:

    tangents   g'_k = H w'_k + d2L/dw dlambda lambda'_k     for K columns at once       (forward mode)
    pullback   u -> (H u, (d2L/dw dlambda)^T u)              one vector a step           (reverse mode)

Engines of `tangents`:

- forward over reverse: `vmap(jvp(grad))`, chunked in K; Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147.
- reverse over reverse: the graph of the gradient once, then one double backward a column, of
  `<g, w'_k> + <dL/dlambda, lambda'_k>`, whose gradient in w is g'_k because the Hessian is symmetric.

Reverse over forward is left out: PyTorch gets it silently wrong through normalisation layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers.base import Params, StepHyper

Loss = Callable[[Params, StepHyper], Tensor]


class Tangents(NamedTuple):
    """What an engine returns for K columns.

    Attributes:
        loss: L, [].
        grads: g, named.
        loss_tangents: dL along each column, [K]: finite exactly if the column still is, at no further cost.
        grad_tangents: g', named, [K, *shape].
    """

    loss: Tensor
    grads: Params
    loss_tangents: Tensor
    grad_tangents: Params


Engine = Callable[[Loss, Params, StepHyper, Params, StepHyper, int | None], Tangents]


def gradient(loss: Loss, params: Params, hyper: StepHyper) -> tuple[Tensor, Params]:
    """L and g, without any graph kept."""
    with torch.enable_grad():
        w = {name: p.detach().requires_grad_() for name, p in params.items()}
        value = loss(w, hyper)
        grads = torch.autograd.grad(value, list(w.values()), materialize_grads=True)
    return value.detach(), dict(zip(w, grads, strict=True))


def push_columns(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """A function's value and its Jacobian-vector products along K directions.

    Args:
        function: of trees of tensors, to a tree of tensors.
        primals: where.
        tangents: like `primals`, with K in front of every tensor.

    Returns:
        The value, and its tangents with K in front.
    """
    if tree_leaves(tangents)[0].shape[0] == 1:
        value, dot = jvp(function, primals, tree_map(lambda x: x[0], tangents))  # type: ignore[misc]
        return value, tree_map(lambda x: x[None], dot)
    out_dims: Any = (None, 0)
    pushed: Any = vmap(lambda *dots: jvp(function, primals, dots), out_dims=out_dims, randomness="same")(*tangents)
    return pushed[0], pushed[1]


def forward_over_reverse(
    loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper, chunk_size: int | None
) -> Tangents:
    """K columns by `vmap(jvp(grad))`, `chunk_size` of them at once; a chunk of one column is a plain jvp."""
    num_columns = next(iter(w_dot.values())).shape[0]
    size = chunk_size or num_columns
    gradient_and_loss, dots = grad_and_value(loss), []
    for k in range(0, num_columns, size):
        chunk = tree_map(lambda x: x[k : k + size], (w_dot, hyper_dot))  # noqa: B023
        try:
            (g, value), dot = push_columns(gradient_and_loss, (params, hyper), chunk)
        except (RuntimeError, NotImplementedError) as error:
            if not any(word in str(error) for word in ("forward", "jvp", "vmap", "functorch")):
                raise
            raise UsageError(
                f"engine forward_over_reverse: an operator of the model has no forward derivative ({error}); "
                "use the engine reverse_over_reverse, or the mode reverse"
            ) from error
        dots.append(dot)
    g_dot, value_dot = dots[0] if len(dots) == 1 else tree_map(lambda *parts: torch.cat(parts), *dots)
    return Tangents(value, g, value_dot, g_dot)


def reverse_over_reverse(
    loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper, chunk_size: int | None
) -> Tangents:
    """K columns by K double backwards through one graph of the gradient; `chunk_size` has no effect."""
    value, g, primals, inputs = _differentiable_gradient(loss, params, hyper)
    names, num_columns = list(params), next(iter(w_dot.values())).shape[0]
    dots = [*w_dot.values(), *tree_flatten(hyper_dot)[0]]
    columns, value_dots = [], []
    for k in range(num_columns):
        with torch.enable_grad():
            along = sum(((d * x[k]).sum() for d, x in zip(g, dots, strict=True)), value.new_zeros(()))
        value_dots.append(along.detach())
        columns.append(_pull(along, inputs[: len(names)], retain=k < num_columns - 1))
    g_dot = {name: torch.stack([column[i] for column in columns]) for i, name in enumerate(names)}
    return Tangents(value.detach(), primals, torch.stack(value_dots), g_dot)


def gradient_and_pullback(
    loss: Loss, params: Params, hyper: StepHyper
) -> tuple[Tensor, Params, Callable[[Params], tuple[Params, StepHyper]]]:
    """L, g, and the map `u -> (H u, (d2L/dw dlambda)^T u)`, which may be called once."""
    value, g, primals, inputs = _differentiable_gradient(loss, params, hyper, with_hyper_gradient=False)
    names, (_, spec) = list(params), tree_flatten(hyper)

    def pullback(u: Params) -> tuple[Params, StepHyper]:
        with torch.enable_grad():
            along = sum(((d * u[name]).sum() for name, d in zip(names, g, strict=True)), value.new_zeros(()))
        adjoints = _pull(along, inputs, retain=False)
        return dict(zip(names, adjoints, strict=False)), tree_unflatten(adjoints[len(names) :], spec)

    return value.detach(), primals, pullback


def _differentiable_gradient(
    loss: Loss, params: Params, hyper: StepHyper, with_hyper_gradient: bool = True
) -> tuple[Tensor, list[Tensor], Params, list[Tensor]]:
    """L, its gradient in w (and lambda) with a graph, the gradient in w without, and the leaves of both."""
    entries, spec = tree_flatten(hyper)
    with torch.enable_grad():
        w = {name: p.detach().requires_grad_() for name, p in params.items()}
        leaves = [entry.detach().requires_grad_() for entry in entries]
        value = loss(w, tree_unflatten(leaves, spec))
        wanted = [*w.values(), *leaves] if with_hyper_gradient else [*w.values()]
        g = torch.autograd.grad(value, wanted, create_graph=True, materialize_grads=True)
    primals = {name: d.detach() for name, d in zip(w, g, strict=False)}
    return value, list(g), primals, [*w.values(), *leaves]


def _pull(along: Tensor, inputs: list[Tensor], retain: bool) -> list[Tensor]:
    """The gradient of a scalar, zero where it is not connected (a loss linear in w has no Hessian)."""
    if not along.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(along, inputs, retain_graph=retain, materialize_grads=True))


ENGINES: dict[str, Engine] = {
    "forward_over_reverse": forward_over_reverse,
    "reverse_over_reverse": reverse_over_reverse,
}


def engine(name: str) -> Engine:
    """The engine of that name; `auto` is forward over reverse.

    Raises:
        ValueError: no such engine.
    """
    if name == "auto":
        return forward_over_reverse
    if name not in ENGINES:
        raise ValueError(f"engine: got {name!r}; allowed are auto, {', '.join(ENGINES)}")
    return ENGINES[name]
