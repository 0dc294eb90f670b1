"""Examples read when they are needed, by a DataLoader that runs on in the direction in which steps are asked for.

Training asks for t = 0, 1, 2, ..., a reverse sweep for T-1, T-2, ..., recomputation from a checkpoint jumps. A walk is
restarted when t leaves it; on it, workers read ahead.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hyperopt_cli.data.digests import Digests, digest
from hyperopt_cli.data.splits import Examples, InMemory, read_example, require_like
from hyperopt_cli.errors import DatasetError

READ_AT_ONCE = 1000


class Raw(NamedTuple):
    """Examples as stored: inputs [B, ...] and targets [B, ...]."""

    inputs: Tensor
    targets: Tensor


class Read(NamedTuple):
    """What one process hands to another: examples, which they are, and a digest of each that may change."""

    raw: Raw
    examples: list[int]
    digests: list[int]


class Streaming:
    """A source that reads examples from a map-style data set.

    Args:
        examples: what to read.
        device: where batches go.
        workers: processes that read ahead; 0 reads in this process.
        digests: of these examples, where they were read elsewhere already.
    """

    def __init__(self, examples: Examples, device: torch.device, workers: int, digests: Digests | None = None) -> None:
        self.examples, self.device, self.workers = _Stacked(examples), device, workers
        self.digests = digests or Digests(len(examples))

    def read(self, index: Tensor) -> Raw:
        """Returns the examples at `index` [B], read in this process."""
        return self.place(self.examples.__getitems__(index.tolist()))

    def walk(self, indices: Iterable[Tensor]) -> Iterator[Raw]:
        """Yields the examples at each index in turn."""
        return map(self.place, _reading(self.loader([index.tolist() for index in indices], persistent=False)))

    def reader(self, index_of: Callable[[int], Tensor]) -> Callable[[int], Raw]:
        """Returns a function of t >= 0 that reads the examples at `index_of(t)`; t that go up or down are fastest."""
        return _Walker(self, index_of)

    def loader(self, batches: Iterable[list[int]], *, persistent: bool) -> Iterable[Read | DatasetError]:
        """Returns a DataLoader over these batches of indices; a persistent one keeps its workers from walk to walk."""
        return DataLoader(
            cast(Dataset[Any], self.examples),
            batch_sampler=cast(Any, batches),
            collate_fn=_as_is,
            num_workers=self.workers,
            persistent_workers=persistent and self.workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or each walk would draw from the global one
        )

    def place(self, read: Read | DatasetError) -> Raw:
        """Returns what was read, on the device; an error of the data set is raised here.

        Raises:
            DatasetError: an example can't be read.
            NonDeterministicError: one is not what it was when it was read before.
        """
        if isinstance(read, DatasetError):
            raise read
        self.digests.compare(read.examples, read.digests)
        return Raw(*(part.to(self.device, non_blocking=True) for part in read.raw))


class _Stacked:
    """Reads a batch at once; errors are returned, because one raised in a worker would come with its traceback."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    @cached_property
    def first(self) -> Raw:
        """Returns example 0, whose shapes the others must have."""
        x, y = read_example(self.examples, 0)
        return Raw(x, torch.as_tensor(y))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, index: list[int]) -> Read | DatasetError:
        try:
            read = [read_example(self.examples, i) for i in index]
            inputs, targets = [x for x, _ in read], [torch.as_tensor(y) for _, y in read]
            for i, x, y in zip(index, inputs, targets, strict=True):
                require_like(x, self.first.inputs, i, "input")
                require_like(y, self.first.targets, i, "target")
        except DatasetError as error:
            return error
        if isinstance(self.examples, InMemory):  # which can't change
            index, digests = [], []
        else:
            digests = [digest(x, y) for x, y in zip(inputs, targets, strict=True)]
        return Read(Raw(torch.stack(inputs), torch.stack(targets)), index, digests)


class _Walk:
    """The indices of t = start, start + direction, ..., down to 0 or without end."""

    def __init__(self, index_of: Callable[[int], Tensor]) -> None:
        self.index_of, self.start, self.direction = index_of, 0, 1

    def __iter__(self) -> Iterator[list[int]]:
        t = self.start
        while t >= 0:
            yield self.index_of(t).tolist()
            t += self.direction


class _Walker:
    """Follows the steps asked for; the last one read is kept, because modes ask twice where they turn round."""

    def __init__(self, source: Streaming, index_of: Callable[[int], Tensor]) -> None:
        self.source, self.steps = source, _Walk(index_of)
        self.loader = source.loader(self.steps, persistent=True)
        self.ahead: Iterator[Read | DatasetError] = iter(())
        self.last: tuple[int, Raw] | None = None

    def __call__(self, t: int) -> Raw:
        if self.last is not None and self.last[0] == t:
            return self.last[1]
        last, self.last = self.last, None  # after an error nothing is known of where the loader stands
        if last is None or t != last[0] + self.steps.direction:
            self.steps.start = t
            self.steps.direction = -1 if last is not None and t == last[0] - 1 else 1
            self.ahead = _reading(self.loader)
        raw = self.source.place(next(self.ahead))
        self.last = (t, raw)
        return raw


def _reading(loader: Iterable[Read | DatasetError]) -> Iterator[Read | DatasetError]:
    """Yields what is read; a process that reads ahead is killed where a file that it has mapped is cut off."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DatasetError(f"a process that reads the data set has ended: {str(error).splitlines()[0]}") from error


def _as_is(read: Any) -> Any:
    return read
