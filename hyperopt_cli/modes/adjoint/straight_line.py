"""DrMAD: the states of the run replaced by those on the straight line between its ends.

    s_t = (1 - t/T) s_0 + (t/T) s_T

Fu, Luo, Feng, Low and Chua 2016, "DrMAD: Distilling reverse-mode automatic differentiation for optimizing
hyperparameters of deep neural networks", https://arxiv.org/abs/1601.00917.

The paper writes the line for the weights, under gradient descent with momentum. Here it runs through the whole state,
the optimizer's slots included, so that any update rule can be swept back along it. Batches and lambda_t are those of
the run.

Cost: no recomputation. Memory: 2 states. The hypergradient is biased, and nothing bounds by how much.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.sweep import Backward, PastStates, Steps


class Line(PastStates):
    """The run, of which only the ends are kept, and the sweep back through its last `num` steps along the line.

    Args:
        steps: of the run.
        account: records every step.
        num: steps that are met again.
    """

    slots = 2

    def __init__(self, steps: Steps, account: Account, num: int) -> None:
        self._steps, self._account = steps, account
        self._total = steps.dynamics.problem.steps
        self._first, self._t, self._state = self._total - num, 0, steps.dynamics.start
        self._back = self._total  # the step that was met last

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` stood."""
        self._t, self._back = state["t"], state["back"]
        self._state = State.from_state_dict(state["state"], self._steps.dynamics.like.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in hand, and the step that was met last."""
        return {"t": self._t, "state": self._state.state_dict(), "back": self._back}

    def forward(self, save: Callable[[], None]) -> State:
        """Runs the training to s_T, keeping no state on the way."""
        while self._t < self._total:
            state, value = self._steps.train(self._t, self._state, self._account)
            self._t, self._state = self._t + 1, state
            self._account.step_done(self._t - 1, value)
            save()
        return self._state

    def backward(self, save: Callable[[], None]) -> Iterator[tuple[int, Backward]]:
        """Yields the last `num` steps, the last one first, each linearised at the state on the line."""
        while self._back > self._first:
            self._back -= 1
            between = _between(self._steps.dynamics.start, self._state, self._back / self._total)
            backward = self._steps.backward_from(self._back, between, self._account, of_the_run=False)
            del between
            yield self._back, backward
            del backward


def _between(start: State, end: State, u: float) -> State:
    between: State = tree_map(lambda a, b: torch.add((1 - u) * a, b, alpha=u), start, end)
    return between
