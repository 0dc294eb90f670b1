"""One kind of step of a run, at any t: as torch runs it, or compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.errors import UsageError
from hyperopt_cli.problem import Chunked
from hyperopt_cli.program import Kept, TwoHalves, WholeStep
from hyperopt_cli.ranks.group import Ranks


class StepAt:
    """`function(dynamics, batch_t, t, *trees)`, called as `step(t, *trees)`.

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

    @property
    def ranks(self) -> Ranks:
        """The processes that take the run together."""
        return self._dynamics.problem.ranks

    def __call__(self, t: int, *trees: Any) -> Any:
        """The step."""
        return self.compiled(t, *trees) if self.is_compiled else self.eager(t, *trees)

    def eager(self, t: int, *trees: Any) -> Any:
        """As torch runs it."""
        return self._function(self._dynamics, self._dynamics.problem.batch(t), t, *trees)

    def compiled(self, t: int, *trees: Any) -> Any:
        """Compiled at the first call for these shapes.

        Raises:
            UsageError: it cannot be compiled, with the reason.
            VerificationError: compiled, it gave something else.
        """
        return self._own()(*self._batches(t), self._tensor(t), *trees)

    def num_operators(self, t: int, *trees: Any) -> int:
        """What compiling has to do with."""
        return self._own().num_operators(self._batches(t)[0], self._tensor(t), *trees)

    def _own(self) -> WholeStep:
        dynamics, function = self._dynamics, self._function
        return self._whole.of(lambda *given: function(dynamics, *given), dynamics.problem)

    def _batches(self, t: int) -> tuple[Any, Iterator[Any]]:
        """That of step t, and those of steps around it, made when they are asked for."""
        problem = self._dynamics.problem
        others = (problem.batch(at) for at in (t + 1, t - 1, t + 2, t - 2) if 0 <= at < problem.steps)
        return _whole_batch(problem.batch(t)), others

    def _tensor(self, t: int) -> Tensor:
        return torch.full((), t, dtype=torch.float64, device=self._dynamics.like.device)


class StepInHalves(StepAt):
    """`function(dynamics, batch_t, t, *trees, late) -> (early, late results)`."""

    _whole: TwoHalves

    def there(self, t: int, late: Any, *trees: Any) -> tuple[Any, Kept]:
        """The early results, compiled, and what the way back takes; `late` is like the late argument."""
        self._own()
        return self._whole.there(*self._batches(t), late, self._tensor(t), *trees)

    def back(self, kept: Kept, late: Any) -> Any:
        """The late results."""
        return self._whole.back(kept, late)

    def compiled(self, t: int, *trees: Any) -> Any:
        """One half after the other."""
        early, kept = self.there(t, trees[-1], *trees[:-1])
        return early, self.back(kept, trees[-1])


def _whole_batch(batch: Any) -> Any:
    if isinstance(batch, Chunked):
        raise UsageError("compile: the batch goes chunk by chunk, one graph at a time; set compile: false")
    return batch
