"""Tensors that carry K tangents, and how each operator moves them.

    y = op(x, w),     y'_k = d op/dx x'_k + d op/dw w'_k          for k = 1 ... K at once

`dual.py` has the tensor. Each other file has the rules of one family of operators; importing them registers the rules.
Every rule is written with plain ATen operators, so that what it does can be traced and compiled.
"""

from hyperopt_cli.engines.duals import (
    accumulations,
    convolution,
    factors,
    normalisation,
    pointwise,
    pooling,
    products,
    reductions,
    views,
)
from hyperopt_cli.engines.duals.dual import Dual, dot, primal

__all__ = [
    "Dual",
    "accumulations",
    "convolution",
    "dot",
    "factors",
    "normalisation",
    "pointwise",
    "pooling",
    "primal",
    "products",
    "reductions",
    "views",
]
