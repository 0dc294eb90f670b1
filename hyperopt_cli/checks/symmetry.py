"""How far the matrix that an engine multiplies with is from a symmetric one, as the Hessian of a scalar is.

    asymmetry = |u.(H v) - v.(H u)| / max(|H u|, |H v|)       u, v ~ N(0, 1), drawn with a seed of their own

A figure of `hyperopt bench hvp`, and no proof: a gradient that is cut can have a symmetric derivative that is wrong,
and what a model trains by need not be the gradient of a scalar. |H u| rather than |u| |H u| is the size of u.(H v) for
random u, so that the figure does not fall with the number of parameters.
"""

import torch
from torch import Tensor

from hyperopt_cli.optimizers.base import Params

SEED = 20


def directions(params: Params, num: int, seed: int = SEED) -> Params:
    """Draws random directions in w, `[num, *shape]`, without moving any other generator."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(num, *w.shape, generator=generator, dtype=w.dtype).to(w.device) for name, w in params.items()
    }


def asymmetry(u_and_v: Params, products: Params) -> float:
    """Returns the asymmetry; 0 where both products are 0, NaN where one is not finite.

    Args:
        u_and_v: two directions, [2, *shape].
        products: H u and H v, [2, *shape].
    """
    sizes = [_inner(row, row).sqrt() for row in (_row(products, 0), _row(products, 1))]
    difference = _inner(_row(u_and_v, 0), _row(products, 1)) - _inner(_row(u_and_v, 1), _row(products, 0))
    size = torch.stack(sizes).max()
    return 0.0 if float(size) == 0.0 else float((difference / size).abs())


def _row(rows: Params, i: int) -> Params:
    return {name: x[i] for name, x in rows.items()}


def _inner(x: Params, y: Params) -> Tensor:
    return torch.stack([(wide(x[name]) * wide(y[name])).sum() for name in x]).sum()


def wide(x: Tensor) -> Tensor:
    """Casts to the precision that sums are taken in."""
    return x.float() if x.device.type == "mps" else x.double()  # which has no float64
