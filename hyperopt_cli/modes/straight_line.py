"""DrMAD: the states of the run replaced by those on the straight line between its ends.

    s_t = (1 - t/T) s_0 + (t/T) s_T

Fu, Luo, Feng, Low and Chua 2016, "DrMAD: Distilling reverse-mode automatic differentiation for optimizing
hyperparameters of deep neural networks", https://arxiv.org/abs/1601.00917.

The paper writes the line for the weights, under gradient descent with momentum. Here it runs through the whole state,
the optimizer's slots included, so that any update rule can be swept back along it. Batches and lambda_t are those of
the run.

Cost: no recomputation. Memory: 2 states. The hypergradient is biased, and nothing bounds by how much.
"""

from collections.abc import Iterator

import torch
from torch.utils._pytree import tree_map

from hyperopt_cli.modes.dynamics import State


def straight_line(start: State, end: State, steps: int, num: int) -> Iterator[tuple[int, State]]:
    """The last `num` of the states 0 ... T - 1 on the line, the last one first.

    Args:
        start: s_0.
        end: s_T.
        steps: T.
        num: of them.
    """
    for t in range(steps - 1, steps - num - 1, -1):
        yield t, _between(start, end, t / steps)


def _between(start: State, end: State, u: float) -> State:
    between: State = tree_map(lambda a, b: torch.add((1 - u) * a, b, alpha=u), start, end)
    return between
