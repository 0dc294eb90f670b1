"""Engines that are wrong, to be found out."""

import torch

from hyperopt_cli.engines import ENGINES
from hyperopt_cli.engines.base import Tangents

RIGHT = "forward_over_reverse"


def lopsided(*arguments) -> Tangents:
    """The right products, with each tensor's elements scaled by their place: no symmetric matrix does that."""
    out = ENGINES[RIGHT](*arguments)
    scaled = {
        name: x * (1 + torch.linspace(0, 1, x[0].numel(), dtype=x.dtype).view(x.shape[1:]))
        for name, x in out.grad_tangents.items()
    }
    return out._replace(grad_tangents=scaled)


def doubled(*arguments) -> Tangents:
    """Twice the right products: symmetric, and wrong."""
    out = ENGINES[RIGHT](*arguments)
    return out._replace(grad_tangents={name: 2 * x for name, x in out.grad_tangents.items()})
