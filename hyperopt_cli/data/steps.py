"""The batches of a training run as a pure function of the step: whole, or in chunks that add up to the same."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from hyperopt_cli.data.chunks import Batch, Preparation, Source
from hyperopt_cli.data.partition import even
from hyperopt_cli.data.preparation import Draws
from hyperopt_cli.data.seeds import derive, generator
from hyperopt_cli.data.shares import MEAN, Shares
from hyperopt_cli.data.streaming import Raw
from hyperopt_cli.errors import UsageError


@dataclass(frozen=True)
class StepChunks(Iterable[tuple[Batch, float]]):
    """A training batch in chunks with their weights, made anew by each iteration; those of weight 0 are left out.

    Attributes:
        t: the step.
        sizes: examples of each chunk.
        weights: of each chunk.
        own: the chunks that are made here; another process makes the others.
        read: the examples of chunk `own[k]` at `t * len(own) + k`.
        prepare: makes the batches.
        seed: of the step; chunk i carries `derive(seed, i)`.
        draws: what is random in the augmentation of the whole batch.
    """

    t: int
    sizes: list[int]
    weights: list[float]
    own: range
    read: Callable[[int], Raw]
    prepare: Preparation
    seed: int
    draws: Draws | None

    def __iter__(self) -> Iterator[tuple[Batch, float]]:
        stops = list(accumulate(self.sizes))
        if not any(self.weights[i] for i in self.own):
            raise UsageError(
                f"step {self.t}: no target of this rank's part of the batch counts in the loss (all are ignored, or of "
                "weight 0): use shard: columns or replicas, or larger batches"
            )
        for k, i in enumerate(self.own):
            size, stop = self.sizes[i], stops[i]
            if not self.weights[i]:
                continue
            own = None if self.draws is None else self.draws.of(stop - size, stop)
            raw = self.read(self.t * len(self.own) + k)
            yield self.prepare(raw, derive(self.seed, i), own), self.weights[i]
            del raw  # before the next one is read


@dataclass(frozen=True)
class Steps:
    """What training steps draw from.

    Attributes:
        source: where the examples come from.
        index: those of the training split.
        prepare: makes the batches.
        batch_size: examples of a step.
        chunk_size: the most examples that go through the model at once; None: all of a batch.
        shuffled: each epoch in another order; if not, every step takes all examples as they come.
        shares: what each chunk of a batch counts.
    """

    source: Source
    index: Tensor
    prepare: Preparation
    batch_size: int
    chunk_size: int | None = None
    shuffled: bool = True
    shares: Shares = MEAN

    @property
    def per_epoch(self) -> int:
        """How many steps one pass takes; the examples left over are dropped, others in each epoch."""
        return len(self.index) // self.batch_size

    @property
    def in_chunks(self) -> bool:
        """Whether a batch is larger than a chunk."""
        return self.chunk_size is not None and self.batch_size > self.chunk_size

    def batches(self, seed: int) -> Callable[[int], Batch]:
        """Returns training batches as a function of the step t >= 0, the same in any order and number of calls.

        Args:
            seed: epoch e is a permutation drawn from `derive(seed, "epoch", e)`, step t is augmented from
                `derive(seed, "augment", t)` and carries the seed `derive(seed, "step", t)`.
        """
        read = self.source.reader(self._index_of(seed))

        def batch(t: int) -> Batch:
            _check_step(t)
            return self.prepare(read(t), derive(seed, "step", t), self._draws(seed, t))

        return batch

    def batches_in_chunks(self, seed: int, rank: int = 0, size: int = 1) -> Callable[[int], StepChunks]:
        """Returns the same batches, step by step, in chunks that are made when they are asked for.

        Args:
            seed: as for `batches`; the examples of a step are augmented alike, and chunk i carries
                `derive(derive(seed, "step", t), i)`.
            rank: which of the processes this is that divide the chunks among themselves.
            size: how many they are; without a chunk size there is a chunk for each.

        Raises:
            ValueError: there are fewer chunks than processes.
        """
        index_of, every = self._index_of(seed), torch.arange(self.batch_size)
        pieces = torch.tensor_split(every, size) if self.chunk_size is None else even(every, self.chunk_size)
        sizes = [len(piece) for piece in pieces if len(piece)]
        if len(sizes) < size:
            raise ValueError(f"got {len(sizes)} chunks of a batch for {size} processes; each needs one")
        own = range(rank, len(sizes), size)

        def piece_of(k: int) -> Tensor:
            t, i = divmod(k, len(own))
            return torch.split(index_of(t), sizes)[own[i]]

        read = self.source.reader(piece_of)

        def batch(t: int) -> StepChunks:
            _check_step(t)
            weights = self.shares(torch.split(index_of(t), sizes))
            return StepChunks(t, sizes, weights, own, read, self.prepare, derive(seed, "step", t), self._draws(seed, t))

        return batch

    def _index_of(self, seed: int) -> Callable[[int], Tensor]:
        """Returns a function of t that gives the indices of the examples of step t."""
        if not self.shuffled:
            return lambda t: self.index

        @lru_cache(maxsize=4)
        def epoch(e: int) -> Tensor:
            return self.index[torch.randperm(len(self.index), generator=generator(seed, "epoch", e))]

        def index_of(t: int) -> Tensor:
            e, i = divmod(t, self.per_epoch)
            return epoch(e)[i * self.batch_size : (i + 1) * self.batch_size]

        return index_of

    def _draws(self, seed: int, t: int) -> Draws | None:
        return self.prepare.augmentation.draw(self.batch_size, generator(seed, "augment", t))


def _check_step(t: int) -> None:
    if t < 0:
        raise ValueError(f"t = {t}: steps are counted from 0")
