"""Examples held on the device as they are stored, uint8 mostly, and gathered by index."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from hyperopt_cli.data.digests import Digests
from hyperopt_cli.data.partition import consecutive
from hyperopt_cli.data.splits import Examples, InMemory
from hyperopt_cli.data.streaming import READ_AT_ONCE, Raw, Streaming
from hyperopt_cli.stopping import stoppable

LIMIT_BYTES = 2 * 2**30


class Resident:
    """A source of examples that are all in the device's memory.

    Args:
        examples: the examples to hold.
        device: the device that holds them.
    """

    def __init__(self, examples: InMemory, device: torch.device) -> None:
        self.device = device
        self.inputs, self.targets = examples.inputs.to(device), examples.targets.to(device)

    def read(self, index: Tensor) -> Raw:
        """Returns the examples at `index` [B]."""
        index = index.to(self.device, non_blocking=True)
        return Raw(self.inputs[index], self.targets[index])

    def walk(self, indices: Iterable[Tensor]) -> Iterator[Raw]:
        """Yields the examples at each index in turn."""
        return map(self.read, indices)

    def reader(self, index_of: Callable[[int], Tensor]) -> Callable[[int], Raw]:
        """Returns a function of t that reads the examples at `index_of(t)`."""
        return lambda t: self.read(index_of(t))


def fits(examples: Examples) -> bool:
    """Returns whether the examples, as stored, take at most `LIMIT_BYTES`, if all are as large as the first."""
    if not len(examples):
        return True
    first = examples[0][0]
    return len(examples) * first.numel() * first.element_size() <= LIMIT_BYTES


def read_all(examples: Examples, workers: int, digests: Digests | None = None) -> InMemory:
    """Reads every example once, into two tensors.

    Raises:
        DatasetError: the shapes of inputs differ.
    """
    if isinstance(examples, InMemory):
        return examples
    pieces = consecutive(torch.arange(len(examples)), READ_AT_ONCE)
    read = Streaming(examples, torch.device("cpu"), workers, digests).walk(pieces)
    held: InMemory | None = None
    for index, (inputs, targets) in stoppable(zip(pieces, read, strict=True)):
        if held is None:  # filled piece by piece: a list of pieces would need twice the memory when it is joined
            held = InMemory(*(part.new_empty(len(examples), *part.shape[1:]) for part in (inputs, targets)))
        held.inputs[index], held.targets[index] = inputs, targets
    assert held is not None
    return held
