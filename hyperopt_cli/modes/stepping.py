"""One kind of step of a run, at any t: as torch runs it, or compiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.compiling import WholeStep
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.problem import Chunked


class StepAt:
    """`function(dynamics, batch_t, *trees, t)`, called as `step(t, *trees)`.

    A compiled step takes t as a float64 tensor [], so that it is the same at every t.

    Args:
        dynamics: of the run.
        function: pure.
        whole: where it is compiled, kept from one hypergradient to the next.
        compiled: whether it is.
    """

    def __init__(self, dynamics: Dynamics, function: Callable[..., Any], whole: WholeStep, compiled: bool) -> None:
        self._dynamics, self._function, self._whole = dynamics, function, whole
        self.is_compiled = compiled

    def __call__(self, t: int, *trees: Any) -> Any:
        """The step."""
        return self.compiled(t, *trees) if self.is_compiled else self.eager(t, *trees)

    def eager(self, t: int, *trees: Any) -> Any:
        """As torch runs it."""
        return self._function(self._dynamics, self._dynamics.problem.batch(t), *trees, t)

    def compiled(self, t: int, *trees: Any) -> Any:
        """Compiled at the first call for these shapes.

        Raises:
            UsageError: it cannot be compiled, with the reason.
            VerificationError: compiled, it gave something else.
        """
        problem = self._dynamics.problem
        another = t + 1 if t + 1 < problem.steps else max(t - 1, 0)
        return self._own()(_whole_batch(problem.batch(t)), lambda: problem.batch(another), *trees, self._tensor(t))

    def num_operators(self, t: int, *trees: Any) -> int:
        """What compiling has to do with."""
        return self._own().num_operators(_whole_batch(self._dynamics.problem.batch(t)), *trees, self._tensor(t))

    def _own(self) -> WholeStep:
        dynamics, function = self._dynamics, self._function
        return self._whole.of(lambda *given: function(dynamics, *given), dynamics.problem)

    def _tensor(self, t: int) -> Tensor:
        return torch.full((), t, dtype=torch.float64, device=self._dynamics.like.device)


def _whole_batch(batch: Any) -> Any:
    if isinstance(batch, Chunked):
        raise UsageError("compile: the batch goes chunk by chunk, one graph at a time; set compile: false")
    return batch
