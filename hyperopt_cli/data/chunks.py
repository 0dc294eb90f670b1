"""Batches as a model takes them, and a split in fixed chunks whose weighted sum is the loss of all examples."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, overload

import torch
from torch import Tensor

from hyperopt_cli.data.partition import even
from hyperopt_cli.data.preparation import Augmentation, Draws, Normalization
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.data.shares import MEAN, Shares
from hyperopt_cli.data.streaming import Raw


class Batch(NamedTuple):
    """Examples ready for a model.

    Attributes:
        inputs: [B, ...], floating point, normalised, augmented in training; int64 where indices are stored.
        targets: [B], int64 classes, or numbers in the run's dtype.
        seed: of everything random that is left in this step, e.g. dropout.
    """

    inputs: Tensor
    targets: Tensor
    seed: int


class Source(Protocol):
    """Where examples come from, which is `Resident` or `Streaming`."""

    def read(self, index: Tensor) -> Raw:
        """Returns the examples at `index` [B]."""

    def walk(self, indices: Iterable[Tensor]) -> Iterator[Raw]:
        """Yields the examples at each index in turn."""

    def reader(self, index_of: Callable[[int], Tensor]) -> Callable[[int], Raw]:
        """Returns a function of t >= 0 that reads the examples at `index_of(t)`, in any order."""


@dataclass(frozen=True)
class Preparation:
    """Turns examples as they are stored into a batch."""

    normalization: Normalization
    augmentation: Augmentation
    target_dtype: torch.dtype

    def __call__(self, raw: Raw, seed: int, draws: Draws | None = None) -> Batch:
        """Normalises the examples, and augments them by `draws` where there are any."""
        inputs = self.normalization.apply(raw.inputs)
        if draws is not None:
            inputs = self.augmentation.apply(inputs, draws)
        return Batch(inputs, raw.targets.to(self.target_dtype), seed)


class Chunks(Sequence[tuple[Batch, float]]):
    """A split in fixed chunks with their weights, made when they are asked for and never augmented.

    Chunks of weight 0 are left out: all that they hold is ignored.

    Args:
        source: where the examples come from.
        index: [n], the examples of this split.
        size: the largest of a chunk; all are alike to within one example, so that no batch normalisation meets a rest.
        prepare: makes the batches.
        seed: chunk i carries `derive(seed, i)`.
        shares: what each chunk counts; n_i / n by default.
    """

    def __init__(
        self, source: Source, index: Tensor, size: int, prepare: Preparation, seed: int, shares: Shares = MEAN
    ) -> None:
        self.source, self.prepare, self.seed = source, prepare, seed
        self.indices = even(index, size)
        self.shares, self.weights = shares, shares(self.indices)
        self._own = [i for i, weight in enumerate(self.weights) if weight]

    def of_rank(self, rank: int, size: int) -> "Chunks":
        """Returns the chunks that one of `size` processes takes, with the same weights."""
        part = copy.copy(self)
        part._own = self._own[rank::size]
        return part

    def __len__(self) -> int:
        return len(self._own)

    @overload
    def __getitem__(self, i: int) -> tuple[Batch, float]: ...
    @overload
    def __getitem__(self, i: slice) -> list[tuple[Batch, float]]: ...
    def __getitem__(self, i: int | slice) -> tuple[Batch, float] | list[tuple[Batch, float]]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        position = self._own[i]
        return self._chunk(position, self.source.read(self.indices[position]))

    def __iter__(self) -> Iterator[tuple[Batch, float]]:
        own = [self.indices[i] for i in self._own]
        for i, raw in zip(self._own, self.source.walk(own), strict=True):
            yield self._chunk(i, raw)

    def _chunk(self, i: int, raw: Raw) -> tuple[Batch, float]:
        return self.prepare(raw, derive(self.seed, i)), self.weights[i]
