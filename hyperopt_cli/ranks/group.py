"""A group of processes: which one this is, and collective operations, which all of them call in the same order.

A group of one calls nothing: every operation gives back what it got.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hyperopt_cli.errors import HyperoptError, RankLostError

Shard = Literal["columns", "batch", "replicas"]
T = TypeVar("T")
TOLD_BY_LEAD = "told_by_lead"  # of an error that all ranks raise


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
        shard: what is divided among them.
    """

    rank: int = 0
    size: int = 1
    shard: Shard = "replicas"

    @property
    def is_lead(self) -> bool:
        """Whether this is the process that writes, and decides what is measured."""
        return self.rank == 0

    def divides(self, what: Shard) -> bool:
        """Returns whether there are several processes that divide `what` among themselves."""
        return self.size > 1 and self.shard == what

    @property
    def of_one_run(self) -> "Ranks":
        """The processes that take a training run together: this one alone where each takes replicas of its own."""
        return ALONE if self.shard == "replicas" else self

    def from_lead(self, value: T) -> T:
        """Returns the value of the lead, on all ranks; what the others give is dropped."""
        if self.size == 1:
            return value
        box = [value if self.is_lead else None]
        with _others_there():
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """Returns the values of all ranks, in their order, on each of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _others_there():
            dist.all_gather_object(found, value)
        return found

    def at_lead(self, value: T) -> list[T]:
        """Returns the values of all ranks on the lead, and an empty list elsewhere; tensors must lie on the host."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_lead else None
        with _others_there():
            dist.gather_object(value, found, dst=0)
        return found or []

    def each(self, work: Callable[[], T]) -> T:
        """Returns what `work` returns here, once it is done on all ranks; an error of one is raised on all."""
        if self.size == 1:
            return work()
        error, done = None, None
        try:
            done = work()
        except Exception as raised:
            error = raised
        self.raise_first(error)
        return done  # type: ignore[return-value]

    def raise_first(self, error: Exception | None) -> None:
        """Raises on all ranks the error of the first one that has any; each gives its own error, or None."""
        for rank, each in enumerate(self.gathered(_sent(error))):
            if each is not None:
                first = error if rank == self.rank and error is not None else each  # with its traceback
                first.__dict__[TOLD_BY_LEAD] = True
                raise first

    def highest(self, numbers: Sequence[float]) -> list[float]:
        """Returns the largest value of each number over all ranks."""
        if self.size == 1:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.float64)
        with _others_there():
            dist.all_reduce(held, dist.ReduceOp.MAX)
        return list(held.tolist())

    def summed(self, tree: Any) -> Any:
        """Returns the sum of a tree of tensors over all ranks, with the same bits on each of them.

        Raises:
            ValueError: a tensor has a graph, which does not reach over processes.
        """
        if self.size == 1:
            return tree
        leaves, spec = tree_flatten(tree)
        if any(x.requires_grad for x in leaves):
            raise ValueError("summed: a graph does not reach over processes; sum what has none")
        summed: list[Tensor] = [torch.empty(0)] * len(leaves)
        for kind in dict.fromkeys((x.dtype, x.device) for x in leaves):  # one message for each
            alike = [i for i, x in enumerate(leaves) if (x.dtype, x.device) == kind]
            flat = torch.cat([leaves[i].flatten() for i in alike])
            with _others_there():
                dist.all_reduce(flat)
            parts = torch.split(flat, [leaves[i].numel() for i in alike])
            for i, part in zip(alike, parts, strict=True):
                summed[i] = part.view(leaves[i].shape)
        return tree_unflatten(summed, spec)


def _sent(error: Exception | None) -> Exception | None:
    """Returns the error in a form that every other process can read."""
    if error is None or isinstance(error, HyperoptError):
        return error
    if isinstance(error, MemoryError):  # which all of them may answer by taking less at once
        return MemoryError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


ALONE = Ranks()


@contextmanager
def _others_there() -> Iterator[None]:
    """Raises `RankLostError` where another process does not answer any more."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(brief(error)) from error


def brief(error: RuntimeError) -> str:
    """Returns the message of gloo or nccl without places in their sources and without their guesses."""
    lines = re.sub(r"\[/[^\]]*\]", "", str(error)).strip().splitlines()
    return lines[0].partition(". ")[0].strip() if lines else "no answer"
