"""Is an example the same each time that it is read? A number of its bits is kept, and compared when it comes again."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch

from hyperopt_cli.errors import NonDeterministicError

REMEDY = (
    "no mode could replay a step. Take random transforms out of the data set; dataset.crop and dataset.flip are "
    "replayed exactly"
)


def digest(*parts: Any) -> int:
    """Returns a digest of 32 bits of what an example holds; equal bits give equal digests."""
    value = 0
    for part in parts:
        x = torch.as_tensor(part).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(x.numpy().data, value)
    return value


class Digests:
    """The digests of the examples of one data set, as they were first read.

    Args:
        num_examples: how many examples it has.
    """

    def __init__(self, num_examples: int) -> None:
        self._known = torch.full((num_examples,), -1, dtype=torch.int64)

    def compare(self, index: Sequence[int], found: Sequence[int]) -> None:
        """Compares what was read now with what was read before.

        Raises:
            NonDeterministicError: an example has changed.
        """
        at, now = torch.tensor(index, dtype=torch.int64), torch.tensor(found, dtype=torch.int64)
        before = self._known[at]
        changed = (before >= 0) & (before != now)
        if bool(changed.any()):
            first = int(at[changed][0])
            raise NonDeterministicError(f"example {first}, read twice, gave two inputs or targets: {REMEDY}")
        self._known[at] = now
