"""Plain runs that are taken ahead, by other processes, while the outer loop waits for the first of them.

The loop takes the results in the order in which it asked, and applies the median rule to each of them then: so what is
measured does not depend on how many runs are taken at the same time, nor on which of them ends first. A run that would
have been stopped is taken to its end, but counted as if it had been stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from hyperopt_cli.errors import HopelessError, NonFiniteError
from hyperopt_cli.modes.plain_run import plain_run
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.problem import Hyper, Problem


class Outcome(NamedTuple):
    """How a plain run ended in another process.

    Attributes:
        run: its result; None where it diverged.
        error: why it diverged.
        losses: L at every step that it took, [t].
    """

    run: Hypergradient | None
    error: NonFiniteError | None
    losses: Tensor

    @classmethod
    def of(cls, problem: Problem, hyper: Hyper) -> "Outcome":
        """Takes the run, and returns how it ended."""
        losses = hyper[next(iter(hyper))].new_empty(0)

        def heard(t: int, so_far: Tensor) -> bool:
            nonlocal losses
            losses = so_far
            return False

        try:
            return cls(plain_run(problem, hyper, hopeless=heard), None, losses)
        except NonFiniteError as error:
            return cls(None, error, losses)

    def judged(self, hopeless: Callable[[int, Tensor], bool] | None) -> Hypergradient:
        """Returns the result, or raises as the run would have done with `hopeless`."""
        for t in range(1, len(self.losses) + 1) if hopeless is not None else ():
            diverged = self.error is not None and self.error.step < t
            if hopeless is not None and not diverged and hopeless(t, self.losses[:t]):
                raise HopelessError(t)
        if self.run is None:
            assert self.error is not None
            raise self.error
        return self.run


class Pool(Protocol):
    """Other processes that take plain runs."""

    def begin(self, seed: int, hyper: Hyper) -> Future[Any]:
        """Begins the run of a seed at lambda, or has it wait for a process that is free."""

    def outcome(self, future: Future[Any], beat: Callable[[], None]) -> Outcome | None:
        """Waits for a run that was begun, and calls `beat` several times a second meanwhile.

        Returns:
            How it ended; None where its process has ended, and no other run will be taken.

        Raises:
            Stopped: the run was asked to end meanwhile.
        """

    def drop(self) -> None:
        """Drops the runs that still wait for a process."""


class Ahead:
    """The plain runs that are begun and not asked for yet.

    Args:
        pool: takes them; None: nobody does.
    """

    def __init__(self, pool: Pool | None) -> None:
        self._pool, self._begun = pool, dict[int, list[Future[Any]]]()

    def begin(self, points: Mapping[int, Hyper], seeds: Sequence[int]) -> None:
        """Begins the runs of several points, whose keys are the numbers of their answers; one alone is not worth it."""
        if self._pool is not None and len(points) > 1:
            for num, hyper in points.items():
                self._begun[num] = [self._pool.begin(seed, hyper) for seed in seeds]

    def drop(self) -> None:
        """Drops what is begun, because nobody will ask for it."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.drop()

    def runs(
        self,
        num: int,
        hopeless: Callable[[int, Tensor], bool] | None,
        say: Callable[[str], None],
        beat: Callable[[], None],
    ) -> list[Hypergradient] | None:
        """Returns the runs of an answer, one for each seed; None if they were not begun, or cannot be had.

        Args:
            num: the number of the answer.
            hopeless: the median rule, where it is applied.
            say: is told that the runs cannot be had.
            beat: is called while it waits.

        Raises:
            NonFiniteError: a run diverged, or was hopeless.
            Stopped: the run was asked to end meanwhile.
        """
        runs = []
        for future in self._begun.pop(num, ()):
            assert self._pool is not None
            outcome = self._pool.outcome(future, beat)
            if outcome is None:
                say("a process of --jobs has ended, perhaps for lack of memory; goes on without them")
                self._pool = None
                self._begun.clear()
                return None
            runs.append(outcome.judged(hopeless))
        return runs or None
