"""The derivatives of one step that take no engine: the training gradient, its pullback, and K tangents of any function.

g(w, lambda) = grad_w L(w, lambda, batch)
pullback   u -> (H u, (d2L/dw dlambda)^T u)              one vector a step           (reverse mode)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss, Loss
from hyperopt_cli.optimizers.base import Params, StepHyper

Pullback = Callable[[Params], tuple[Params, StepHyper]]


def gradient(loss: Loss, params: Params, hyper: StepHyper) -> tuple[Tensor, Params]:
    """Returns L and g, without keeping any graph."""
    if isinstance(loss, ChunkedLoss):
        total: tuple[Tensor, Params] = loss.total(lambda chunk: gradient(chunk, params, hyper))
        return total
    with torch.enable_grad():
        w = {name: p.detach().requires_grad_() for name, p in params.items()}
        value = loss(w, hyper)
        grads = torch.autograd.grad(value, list(w.values()), materialize_grads=True)
    return value.detach(), dict(zip(w, grads, strict=True))


def push_columns(
    function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], at_once: int | None = None
) -> tuple[Any, Any]:
    """Returns a function's value and its Jacobian-vector products along K directions.

    Args:
        function: of trees of tensors, to a tree of tensors.
        primals: its arguments.
        tangents: of the arguments, like `primals`, `[K, *shape]`.
        at_once: directions of one pass, each of which evaluates the function; None: all K.

    Returns:
        The value, and its tangents `[K, *shape]`.
    """
    num = tree_leaves(tangents)[0].shape[0]
    if at_once is not None and at_once < num:
        parts = []
        for k in range(0, num, at_once):
            value, dot = push_columns(function, primals, tree_map(lambda x: x[k : k + at_once], tangents))  # noqa: B023
            parts.append(dot)
        return value, tree_map(lambda *dots: torch.cat(dots), *parts)
    if num == 1:
        value, dot = jvp(function, primals, tree_map(lambda x: x[0], tangents))  # type: ignore[misc]
        return value, tree_map(lambda x: x[None], dot)
    out_dims: Any = (None, 0)
    pushed: Any = vmap(lambda *dots: jvp(function, primals, dots), out_dims=out_dims, randomness="same")(*tangents)
    return pushed[0], pushed[1]


def leaf(x: Tensor) -> Tensor:
    """Returns the tensor as a leaf of a new graph."""
    return x.detach().requires_grad_()


def vjp(outputs: Any, inputs: tuple[Any, ...], cotangents: Any) -> Any:
    """Returns the vector-Jacobian product of a graph: the cotangents of its inputs; zero where nothing is connected.

    Args:
        outputs: a tree of tensors with their graph.
        inputs: trees of the leaves of that graph.
        cotangents: of the outputs, like these.

    Returns:
        Those of the inputs, like these.
    """
    leaves, spec = tree_flatten(inputs)
    both = zip(tree_leaves(outputs), tree_leaves(cotangents), strict=True)
    pairs = [(y, a.to(y)) for y, a in both if y.requires_grad]  # what is constant waits for no device
    if not pairs:
        return tree_unflatten([torch.zeros_like(x) for x in leaves], spec)
    grads = torch.autograd.grad([y for y, _ in pairs], leaves, [a for _, a in pairs], materialize_grads=True)
    return tree_unflatten(list(grads), spec)


def gradient_and_pullback(
    loss: Loss, params: Params, hyper: StepHyper, of_one: Callable[..., tuple[Tensor, Params, Pullback]] | None = None
) -> tuple[Tensor, Params, Pullback]:
    """Returns L, g, and the pullback `u -> (H u, (d2L/dw dlambda)^T u)`, which may be called once.

    Of a sum over chunks no graph is kept: the pullback takes the gradient of each chunk again.

    Args:
        loss: L.
        params: w.
        hyper: lambda_t.
        of_one: takes the three of a loss that is no sum; None: by a double backward.
    """
    take = of_one or by_double_backward
    if isinstance(loss, ChunkedLoss):
        return *gradient(loss, params, hyper), _pullback_of_chunks(loss, params, hyper, take)
    return take(loss, params, hyper)


def by_double_backward(loss: Loss, params: Params, hyper: StepHyper) -> tuple[Tensor, Params, Pullback]:
    """Returns L, g and the pullback of a loss that is no sum, by differentiating the gradient's graph."""
    return pullback_of(*evaluated(loss, params, hyper), params, hyper)


def evaluated(loss: Loss, params: Params, hyper: StepHyper) -> tuple[Tensor, list[Tensor]]:
    """Returns L with its graph, and its leaves: those of w, then those of lambda."""
    entries, spec = tree_flatten(hyper)
    with torch.enable_grad():
        w = {name: p.detach().requires_grad_() for name, p in params.items()}
        leaves = [entry.detach().requires_grad_() for entry in entries]
        return loss(w, tree_unflatten(leaves, spec)), [*w.values(), *leaves]


def pullback_of(
    value: Tensor, inputs: list[Tensor], params: Params, hyper: StepHyper
) -> tuple[Tensor, Params, Pullback]:
    """Returns L, g and the pullback from what `evaluated` gave.

    Args:
        value: L with its graph.
        inputs: the leaves of w and lambda.
        params: w, for its names.
        hyper: lambda_t, for its structure.

    Returns:
        L and g, detached, and `u -> (H u, (d2L/dw dlambda)^T u)`, which may be called once.
    """
    with torch.enable_grad():
        g = torch.autograd.grad(value, inputs[: len(params)], create_graph=True, materialize_grads=True)
    names, (_, spec) = list(params), tree_flatten(hyper)

    def pullback(u: Params) -> tuple[Params, StepHyper]:
        moving = [(d, u[name]) for name, d in zip(names, g, strict=True) if d.requires_grad]
        if moving:
            outputs, along = zip(*moving, strict=True)
            adjoints = torch.autograd.grad(outputs, inputs, along, materialize_grads=True)
        else:  # a loss linear in w has no Hessian
            adjoints = tuple(torch.zeros_like(x) for x in inputs)
        return dict(zip(names, adjoints, strict=False)), tree_unflatten(list(adjoints[len(names) :]), spec)

    return value.detach(), {name: d.detach() for name, d in zip(names, g, strict=True)}, pullback


def _pullback_of_chunks(loss: ChunkedLoss, params: Params, hyper: StepHyper, take: Callable[..., Any]) -> Pullback:
    def pullback(u: Params) -> tuple[Params, StepHyper]:
        total: tuple[Params, StepHyper] = loss.total(lambda chunk: take(chunk, params, hyper)[2](u))
        return total

    return pullback


def differentiable_gradient(
    loss: Loss, params: Params, hyper: StepHyper
) -> tuple[Tensor, list[Tensor], Params, list[Tensor]]:
    """Returns L, its gradient in w and lambda with a graph, the gradient in w without, and the leaves of both."""
    value, leaves = evaluated(loss, params, hyper)
    with torch.enable_grad():
        g = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
    primals = {name: d.detach() for name, d in zip(params, g, strict=False)}
    return value, list(g), primals, leaves


def pull(along: Tensor, inputs: list[Tensor], retain: bool) -> list[Tensor]:
    """Returns the gradient of a scalar, zero where it is not connected (a loss linear in w has no Hessian)."""
    if not along.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(along, inputs, retain_graph=retain, materialize_grads=True))
