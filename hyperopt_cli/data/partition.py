"""Splitting examples in two, at random or class by class, from a given generator."""

import torch
from torch import Tensor

from hyperopt_cli.errors import DatasetError


def partition(num_examples: int, fraction: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Splits 0 ... N-1 at random into two parts, of which the second has the share `fraction`.

    Args:
        num_examples: N.
        fraction: of the examples that go into the second part, rounded to whole examples.
        rng: where the permutation is drawn from.

    Returns:
        Indices [N - n], [n], each ascending, so that disks and caches are read in order.

    Raises:
        DatasetError: one of the parts would be empty.
    """
    num_second = _count(num_examples, fraction)
    order = torch.randperm(num_examples, generator=rng)
    return order[num_second:].sort().values, order[:num_second].sort().values


def stratified_partition(targets: Tensor, fraction: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Splits like `partition`, and keeps the share of each class within one example.

    Each class gives `fraction` of its examples, rounded down; what is missing to the total comes from the classes with
    the largest remainders.

    Args:
        targets: [N], integers.
        fraction: as in `partition`.
        rng: as in `partition`.

    Raises:
        DatasetError: one of the parts would be empty.
    """
    num_second = _count(len(targets), fraction)
    sizes = torch.bincount(targets)
    quota = sizes.double() * num_second / len(targets)
    counts = quota.floor().long()
    missing = num_second - int(counts.sum())
    counts[(quota - counts).argsort(descending=True, stable=True)[:missing]] += 1

    second = torch.zeros(len(targets), dtype=torch.bool)
    for label, count in enumerate(counts.tolist()):
        members = (targets == label).nonzero().flatten()
        second[members[torch.randperm(len(members), generator=rng)[:count]]] = True
    return (~second).nonzero().flatten(), second.nonzero().flatten()


def consecutive(index: Tensor, size: int) -> list[Tensor]:
    """Returns consecutive pieces of `size` entries; the last one may be shorter."""
    return [index[start : start + size] for start in range(0, len(index), size)]


def _count(num_examples: int, fraction: float) -> int:
    if not 0 < fraction < 1:
        raise DatasetError(f"validation_fraction = {fraction}: it has to lie between 0 and 1, e.g. 0.1")
    count = round(fraction * num_examples)
    if not 0 < count < num_examples:
        raise DatasetError(
            f"validation_fraction = {fraction} of {num_examples} examples splits them into {num_examples - count} to "
            f"train on and {count} to validate on: choose a fraction that leaves at least one in each"
        )
    return count


def even(index: Tensor, size: int) -> list[Tensor]:
    """Cuts `index` into the fewest consecutive parts of at most `size`, whose lengths differ by one at most.

    >>> [len(part) for part in even(torch.arange(11), 5)]
    [4, 4, 3]
    """
    return list(index.tensor_split(-(-len(index) // size))) if len(index) else []
