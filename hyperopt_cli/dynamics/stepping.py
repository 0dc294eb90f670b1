"""One kind of step of a run, at any t: as torch runs it, or compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.errors import UsageError
from hyperopt_cli.problem import Chunked
from hyperopt_cli.program import CompiledStep, PartitionedStep, Saved


class StepAt:
    """`function(dynamics, batch_t, t, *trees)`, called as `step(t, *trees)`.

    A compiled step takes t as a float64 tensor [], so that it is the same at every t.

    Args:
        dynamics: of the run.
        function: pure.
        whole: where it is compiled, kept from one hypergradient to the next.
        compiled: whether it is.
    """

    def __init__(self, dynamics: Dynamics, function: Callable[..., Any], whole: CompiledStep, compiled: bool) -> None:
        self._dynamics, self._function, self._whole = dynamics, function, whole
        self.is_compiled = compiled

    def __call__(self, t: int, *trees: Any) -> Any:
        """Takes the step, compiled or as torch runs it."""
        return self.compiled(t, *trees) if self.is_compiled else self.eager(t, *trees)

    def eager(self, t: int, *trees: Any) -> Any:
        """Takes the step as torch runs it, operator by operator."""
        return self._function(self._dynamics, self._dynamics.problem.batch(t), t, *trees)

    def compiled(self, t: int, *trees: Any) -> Any:
        """Takes the step compiled, which happens at the first call for these shapes.

        Raises:
            UsageError: it cannot be compiled, with the reason.
            VerificationError: compiled, it gave something else.
        """
        return self._own()(*self._batches(t), self._tensor(t), *trees)

    def num_operators(self, t: int, *trees: Any) -> int:
        """Counts the operators of the step, which decide how long compiling takes."""
        return self._own().num_operators(self._batches(t)[0], self._tensor(t), *trees)

    def _own(self) -> CompiledStep:
        dynamics, function = self._dynamics, self._function
        return self._whole.of(lambda *given: function(dynamics, *given), dynamics.problem)

    def _batches(self, t: int) -> tuple[Any, Iterator[Any]]:
        """Returns the batch of step t, and an iterator over those of the steps around it."""
        problem = self._dynamics.problem
        others = (problem.batch(at) for at in (t + 1, t - 1, t + 2, t - 2) if 0 <= at < problem.steps)
        return _whole_batch(problem.batch(t)), others

    def _tensor(self, t: int) -> Tensor:
        return torch.full((), t, dtype=torch.float64, device=self._dynamics.like.device)


class PartitionedStepAt(StepAt):
    """`function(dynamics, batch_t, t, *trees, cotangent) -> (outputs, results of backward)`."""

    _whole: PartitionedStep

    def forward(self, t: int, cotangent: Any, *trees: Any) -> tuple[Any, Saved]:
        """Runs forward, compiled: returns the outputs and what is saved for backward.

        `cotangent` is like the one that `backward` will take.
        """
        self._own()
        return self._whole.forward(*self._batches(t), cotangent, self._tensor(t), *trees)

    def backward(self, saved: Saved, cotangent: Any) -> Any:
        """Returns the results that depend on the cotangent, from what `forward` has saved."""
        return self._whole.backward(saved, cotangent)

    def compiled(self, t: int, *trees: Any) -> Any:
        """Runs forward and then backward, both compiled; the last of `trees` is the cotangent."""
        outputs, saved = self.forward(t, trees[-1], *trees[:-1])
        return outputs, self.backward(saved, trees[-1])


def _whole_batch(batch: Any) -> Any:
    if isinstance(batch, Chunked):
        raise UsageError("compile: the batch goes chunk by chunk, one graph at a time; set compile: false")
    return batch
