"""Which steps of a run are examined: those of a kind that was not met before, and a few drawn by seed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hyperopt_cli.dynamics.kinds import Kind, code_of, kind_of
from hyperopt_cli.problem import Problem

FIRST = 3  # later steps that are examined in the first run of a problem; one in every run after it, if affordable
SHARE, AT_LEAST_S = 0.05, 2.0  # of the time of all runs, for what is examined again
FEW_KINDS, MOST_KINDS = 3, 16  # examined in any case; at most, but for those with an operator on another not met so


class Watch:
    """Keeps the kinds of step that were met, and the steps to be examined.

    Attributes:
        met: kinds since the last look.
        examines: whether anything is examined in this run.
        looks: examinations of this problem so far.
    """

    def __init__(self) -> None:
        self.met: set[Kind] = set()
        self._drawn: set[int] = set()
        self._runs, self.looks, self.examines = 0, 0, True
        self._began_s, self._spent_s, self._last_s = time.perf_counter(), 0.0, 0.0
        self._code: object = None

    def __call__(self, value: Tensor) -> None:
        """Records the kind of a loss that was evaluated."""
        if self.examines and value.grad_fn is not None:
            self.met.add(kind_of(value))

    def begin(self, problem: Problem, examines: bool = True) -> bool:
        """Begins a run, or goes on: draws the steps that are examined whatever their kind.

        Args:
            problem: whose run it is.
            examines: whether any step is examined.

        Returns:
            Whether its loss is another one than that of the last run, so that nothing is known of it.
        """
        parts = problem.inner_loss, problem.outer_loss, problem.init, problem.schedule, type(problem.optimizer)
        code = tuple(code_of(part) for part in parts)
        is_new, self._code = bool(code != self._code), code
        self._runs = 0 if is_new else self._runs + 1
        self.examines = examines
        self.met.clear()
        if is_new:
            self.looks = 0
            self._began_s, self._spent_s, self._last_s = time.perf_counter(), 0.0, 0.0
        drawn = torch.Generator().manual_seed(self._runs)
        order = torch.randperm(max(0, problem.steps - 1), generator=drawn)
        self._drawn = {1 + int(t) for t in order[: int(self.affords) if self._runs else FIRST]}
        return is_new

    @property
    def affords(self) -> bool:
        """Whether one more examination that nothing else asks for stays within its share of the time so far."""
        elapsed_s = time.perf_counter() - self._began_s
        return self._spent_s + self._last_s <= max(AT_LEAST_S, SHARE * elapsed_s)

    @contextmanager
    def clocked(self) -> Iterator[None]:
        """Counts the time of the examination inside."""
        began_s = time.perf_counter()
        self.looks += 1
        try:
            yield
        finally:
            self._last_s = time.perf_counter() - began_s
            self._spent_s += self._last_s

    def taken(self, t: int, known: set[Kind], due: bool = False) -> set[Kind] | None:
        """Returns the kinds met since the last look that are not known, where step t is to be examined; else None."""
        met, self.met = self.met, set()
        new = self.worth(met - known, known)
        drawn = t in self._drawn
        self._drawn.discard(t)
        return new if self.examines and (new or drawn or due) else None

    def worth(self, new: set[Kind], known: set[Kind]) -> set[Kind]:
        """Returns the kinds to examine: of many, or where time lacks, only those with a new pair of operators."""
        if len(known) < FEW_KINDS or (len(known) < MOST_KINDS and self.affords):
            return new
        edges = {edge for kind in known for edge, _ in kind}
        return {kind for kind in new if not {edge for edge, _ in kind} <= edges}
