"""When two problems are of one size, so that what was measured for one serves both."""

from typing import Any

from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.problem import Hyper


def size_of(dynamics: Dynamics, hyper: Hyper) -> Any:
    """Returns the horizon, optimizer and precision, and the shapes, dtypes and devices of lambda and the state."""
    shapes = tree_map(lambda x: (x.shape, x.dtype, x.device), (hyper, dynamics.start))
    problem = dynamics.problem
    return problem.steps, repr(problem.optimizer), problem.precision, repr(shapes)
