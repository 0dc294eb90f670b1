"""A data set that gives another example at another reading is refused, whichever examples it changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hyperopt_cli.data.batches import Data, Loading, load
from hyperopt_cli.data.digests import Digests, digest
from hyperopt_cli.data.splits import as_splits
from hyperopt_cli.errors import NonDeterministicError

CPU = torch.device("cpu")
NUM = 200
X = torch.randn(NUM, 4, generator=torch.Generator().manual_seed(0))
LABELS = (torch.arange(NUM) >= 190).long()  # the rarer class is one in twenty


class Changing(Dataset[tuple[Tensor, Any]]):
    """X and a target, as `change` alters them: (i, x, y, how many were read) -> (x, y)."""

    def __init__(self, change: Callable[..., tuple[Tensor, Any]], labels: bool = False, held: bool = False) -> None:
        self.change, self.num_read, self.labels = change, 0, labels
        if held:
            self.targets = LABELS if labels else X[:, 0]

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        self.num_read += 1
        return self.change(i, X[i].clone(), int(LABELS[i]) if self.labels else X[i, :1], self.num_read)


def steady(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return x, y


def all_of_them(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return x + torch.randn(4), y


def rare_class(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return (x + torch.randn(4) if i >= 190 else x), y


def one_in_ten(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return (x.flip(0) if i % 10 == 7 and n % 2 else x), y


def by_count(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return x * n, y


def targets_only(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return x, y + torch.rand(1)


def last_bit(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return (torch.nextafter(x, x + 1) if n % 2 else x), y


def not_the_first(i: int, x: Tensor, y: Any, n: int) -> tuple[Tensor, Any]:
    return (x + torch.rand(()) if i else x), y


def made(examples: Changing, **loading: Any) -> Data:
    settings = Loading(**{"batch_size": 20, "validation_fraction": 0.2, **loading})
    return load(as_splits(examples), settings, seed=0, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("residence", ["auto", "stream"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("change", "labels"),
    [
        (all_of_them, False),
        (all_of_them, True),
        (rare_class, True),
        (one_in_ten, False),
        (by_count, True),
        (targets_only, False),
        (last_bit, False),
        (not_the_first, True),
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_it_is_refused_before_a_step(change: Any, labels: bool, residence: str, normalize: bool, held: bool) -> None:
    with pytest.raises(NonDeterministicError, match=r"example \d+, read twice, gave two inputs or targets"):
        made(Changing(change, labels, held), residence=residence, normalize=normalize)


@pytest.mark.parametrize("residence", ["auto", "stream"])
@pytest.mark.parametrize("labels", [False, True])
def test_one_that_stays_is_not(residence: str, labels: bool) -> None:
    data = made(Changing(steady, labels), residence=residence)
    read = data.steps.batches(0)
    for t in [0, 1, 7, 20, 8, 7, 6, 1, 0]:
        read(t)
    assert len(list(data.validation)) == 1


class Breaking(Changing):
    """Steady until it is told otherwise."""

    broken = False

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        x, y = super().__getitem__(i)
        return (x + 1 if self.broken and i == 150 else x), y


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_example_is_compared_whenever_it_is_met_again(workers: int) -> None:
    examples = Breaking(steady)
    data = made(examples, residence="stream", workers=workers, validation_fraction=0.01)
    read = data.steps.batches(0)
    steps = range(data.steps.per_epoch)
    before = [read(t).inputs for t in steps]
    examples.broken = True
    again = data.steps.batches(0)
    with pytest.raises(NonDeterministicError, match="example 150, read twice"):
        assert [again(t).inputs for t in reversed(steps)] != before


def test_digests_differ_by_a_bit_and_not_by_the_layout() -> None:
    x = torch.randn(3, 4)
    assert digest(x, 1) == digest(x.clone(), 1) != digest(x, 2)
    assert digest(x.T) == digest(x.T.contiguous())
    assert digest(torch.tensor(float("nan"))) == digest(torch.tensor(float("nan")))
    assert digest(x, torch.tensor(True)) != digest(x, torch.tensor(False))
    assert digest(x.bfloat16()) != digest(torch.nextafter(x, x + 100).bfloat16() + 1)


def test_only_what_was_read_is_compared() -> None:
    digests = Digests(4)
    digests.compare([0, 2], [5, 6])
    digests.compare([3, 2], [7, 6])
    with pytest.raises(NonDeterministicError, match="example 2"):
        digests.compare([1, 2], [1, 7])
