"""What torch has to be told while a mode is at work."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyperopt_cli.dynamics.precision import products_in
from hyperopt_cli.problem import Precision


@contextmanager
def surroundings(precision: Precision | None = None) -> Iterator[None]:
    """Inside, attention is taken by matrix products, and these in `precision`; no graph is made by default.

    The fused kernels of attention have no second derivative. A deprecation warning of torch's own is not shown.
    """
    with sdpa_kernel(SDPBackend.MATH), products_in(precision), torch.no_grad(), warnings.catch_warnings():
        # vmap(jvp(grad)) loads decompositions that torch itself still scripts.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated", category=FutureWarning)
        yield
