"""Hypergradients as they are written without this package, in plain torch: what its modes are measured against.

Both train by SGD with momentum and L2 decay, in `torch.optim.SGD`'s convention,

    m <- momentum m + g + weight_decay w,    w <- w - lr m

and take nothing from a problem but its losses, its batches and its schedule.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from hyperopt_cli.bench.problems import Workload
from hyperopt_cli.problem import Hyper, Params, StepHyper


def unroll(workload: Workload) -> Hyper:
    """Returns the hypergradient by one autograd graph of the whole run and one backward pass through it."""
    problem, values = workload
    hyper = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.enable_grad():
        w = {name: x.detach().requires_grad_() for name, x in problem.initial(values).items()}
        m = {name: torch.zeros_like(x) for name, x in w.items()}
        for t in range(problem.steps):
            at = cast(dict[str, Tensor], problem.hyper_at(hyper, t))
            loss = problem.training_loss(w, dict(at), problem.batch(t))
            g = dict(zip(w, torch.autograd.grad(loss, list(w.values()), create_graph=True), strict=True))
            m = {name: at["momentum"] * m[name] + g[name] + at["weight_decay"] * x for name, x in w.items()}
            w = {name: x - at["lr"] * m[name] for name, x in w.items()}
        grads = torch.autograd.grad(problem.validation_loss(w, hyper), list(hyper.values()))
    return dict(zip(hyper, grads, strict=True))


def loop_of_double_backwards(workload: Workload) -> Hyper:
    """Returns the hypergradient by forward mode, with a double backward pass for each of the K columns of Z.

    All K columns are carried from the first step on. The vectors are flat, w [P] and Z [K, P], so that everything but
    the products with the Hessian is a few operations.
    """
    problem, hyper = workload
    named = problem.initial(hyper)
    w = torch.cat([x.flatten() for x in named.values()])
    num_columns = sum(value.numel() for value in hyper.values())
    m, w_dot, m_dot = torch.zeros_like(w), w.new_zeros(num_columns, len(w)), w.new_zeros(num_columns, len(w))
    for t in range(problem.steps):
        at, slopes = _at(problem.hyper_at, hyper, t)  # slopes: like lambda_t, [K]
        params = _leaves(w, named)
        with torch.enable_grad():
            loss = problem.training_loss(params, dict(at), problem.batch(t))
            g = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        m_dot = at["momentum"] * m_dot + at["weight_decay"] * w_dot + _hessian_times(params, g, w_dot)
        m_dot += torch.outer(slopes["momentum"].to(w), m) + torch.outer(slopes["weight_decay"].to(w), w)
        m = at["momentum"] * m + torch.cat([d.detach().flatten() for d in g]) + at["weight_decay"] * w
        w_dot = w_dot - at["lr"] * m_dot - torch.outer(slopes["lr"].to(w), m)
        w = w - at["lr"] * m
    params = _leaves(w, named)
    with torch.enable_grad():
        objective = problem.validation_loss(params, hyper)
    by_w = torch.cat([d.flatten() for d in torch.autograd.grad(objective, list(params.values()))])
    parts = torch.split((w_dot @ by_w).cpu(), [value.numel() for value in hyper.values()])
    return {name: part.view(hyper[name].shape).to(hyper[name]) for name, part in zip(hyper, parts, strict=True)}


def _hessian_times(params: Params, g: tuple[Tensor, ...], w_dot: Tensor) -> Tensor:
    """Returns the product of the Hessian with each row of `w_dot`, by one double backward pass a row."""
    sizes = [x.numel() for x in params.values()]
    rows = []
    for row in w_dot:
        along = [part.view(d.shape) for part, d in zip(torch.split(row, sizes), g, strict=True)]
        products = torch.autograd.grad(g, list(params.values()), along, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([product.flatten() for product in products]))
    return torch.stack(rows)


def _leaves(w: Tensor, named: Params) -> Params:
    parts = torch.split(w, [x.numel() for x in named.values()])
    return {
        name: part.view(x.shape).detach().requires_grad_() for (name, x), part in zip(named.items(), parts, strict=True)
    }


def _at(schedule: Callable[[Hyper, int], StepHyper], hyper: Hyper, t: int) -> tuple[dict[str, Tensor], Hyper]:
    """Returns lambda_t, and the derivative [K] of each of its entries by all of lambda."""
    leaves = {name: value.detach().requires_grad_() for name, value in hyper.items()}
    with torch.enable_grad():
        at = schedule(leaves, t)
    values, slopes = {}, {}
    for name, entry in cast(dict[str, Tensor], at).items():
        by_leaf = torch.autograd.grad(entry, list(leaves.values()), materialize_grads=True)
        values[name], slopes[name] = entry.detach(), torch.cat([d.flatten() for d in by_leaf])
    return values, slopes
