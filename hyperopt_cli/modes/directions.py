"""The K directions of lambda that forward mode follows, and how lambda_t moves along each of them.

A schedule is a few small operators that run at every step, so what its derivative costs is the calls. lambda_t is
mostly a few scalars: a pass backward for each element of it gives all K tangents, where batched dual numbers cost
several times as much. More elements than `FEW` (data weights, a rate for each tensor) go forward, all K at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hyperopt_cli.dynamics.derivatives import push_columns
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.optimizers.base import StepHyper
from hyperopt_cli.problem import Hyper

FEW = 16

# t -> lambda_t and its tangents along every direction, like lambda_t with K in front
LambdaAt = Callable[[int], tuple[StepHyper, StepHyper]]


def identity(hyper: Hyper) -> Hyper:
    """Returns one direction for every element of lambda: `[K, *shape]` for each key, an identity over all of them."""
    sizes = [value.numel() for value in hyper.values()]
    whole = [torch.eye(sum(sizes), dtype=value.dtype, device=value.device) for value in hyper.values()]
    parts = [torch.split(eye, sizes, dim=1)[i] for i, eye in enumerate(whole)]
    return {name: part.reshape(sum(sizes), *hyper[name].shape) for name, part in zip(hyper, parts, strict=True)}


def tangents_of_schedule(dynamics: Dynamics, hyper: Hyper) -> LambdaAt:
    """Returns lambda_t and its tangents as a function of t; without a schedule they are always the same."""
    basis = identity(hyper)

    def at(t: int) -> tuple[StepHyper, StepHyper]:
        with torch.enable_grad():
            leaves: Hyper = tree_map(lambda x: x.detach().requires_grad_(), hyper)
            schedule = dynamics.derivable("schedule", lambda h: dynamics.plain_hyper_at(h, t), (hyper,))
            entries, spec = tree_flatten(schedule(leaves))
            if sum(entry.numel() for entry in entries) <= FEW:
                rows = [_rows(entry, leaves) for entry in entries]
                return tree_unflatten([entry.detach() for entry in entries], spec), tree_unflatten(rows, spec)
        return push_columns(schedule, (hyper,), (basis,))

    if dynamics.problem.schedule is not None:
        return at
    always = at(0)
    return lambda t: always


def _rows(entry: Tensor, leaves: Hyper) -> Tensor:
    """Returns the derivative of a tensor in every element of lambda, `[K, *shape]`."""
    num_columns = sum(leaf.numel() for leaf in leaves.values())
    if not entry.requires_grad or entry.numel() == 0:
        return entry.new_zeros(num_columns, *entry.shape)
    columns = []
    for element in entry.reshape(-1).unbind():
        by_leaf = torch.autograd.grad(element, list(leaves.values()), retain_graph=True, materialize_grads=True)
        columns.append(torch.cat([d.flatten().to(entry) for d in by_leaf]))
    return torch.stack(columns, dim=1).view(num_columns, *entry.shape)
