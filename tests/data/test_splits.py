"""What a data set's function may return, and how examples are split in two."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from hyperopt_cli.data import InMemory, Splits, as_splits, digits, synthetic
from hyperopt_cli.data.partition import partition, stratified_partition
from hyperopt_cli.data.seeds import derive, generator
from hyperopt_cli.errors import DatasetError


class Squares(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index, index**2]), index % 3


def test_seeds_differ_by_every_label_and_stay_in_63_bits() -> None:
    seeds = [derive(0), derive(1), derive(0, "a"), derive(0, "a", 1), derive(0, "a", "1"), derive(0, "a1")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_in_every_process() -> None:
    assert derive(0, "split") == 8764376260289002719


def test_tensors_with_integer_targets_make_a_classification() -> None:
    splits = as_splits((torch.zeros(4, 3), torch.tensor([0, 2, 1, 0])))
    assert (splits.input_shape, splits.num_classes, splits.test) == ((3,), 3, None)


def test_tensors_with_floating_targets_make_a_regression() -> None:
    assert as_splits((torch.zeros(4, 3), torch.zeros(4))).num_classes is None


def test_a_dataset_of_ones_own_is_read_for_its_classes() -> None:
    splits = as_splits(Squares())
    assert (len(splits.train), splits.input_shape, splits.num_classes) == (5, (2,), 3)


def test_a_pair_of_datasets_is_train_and_test() -> None:
    test = TensorDataset(torch.zeros(2, 2), torch.tensor([0, 6]))
    splits = as_splits((Squares(), test))
    assert splits.test is not None
    assert (len(splits.train), len(splits.test), splits.num_classes) == (5, 2, 7)


def test_splits_pass_through() -> None:
    splits = Splits(Squares(), None, (2,), 3)
    assert as_splits(splits) is splits


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (None, "a NoneType"),
        (torch.zeros(3), "a Tensor"),
        ([1, 2], r"a list of 2: \(int, int\)"),
        ((torch.zeros(2), torch.zeros(2), torch.zeros(2)), r"a tuple of 3: \(Tensor, Tensor, Tensor\)"),
        ((torch.zeros(2), Squares()), "a Tensor"),
    ],
)
def test_anything_else_is_refused_by_name(returned: object, named: str) -> None:
    with pytest.raises(DatasetError, match=f"got {named}: a data set's function may return Splits"):
        as_splits(returned)


def test_examples_that_are_not_tensors_are_refused() -> None:
    class Words(Squares):
        def __getitem__(self, index: int) -> tuple[str, int]:  # type: ignore[override]
            return "word", 0

    with pytest.raises(DatasetError, match=r"example 0 is a tuple of 2: \(str, int\)"):
        as_splits(Words())


def test_tensors_of_differing_lengths_are_refused() -> None:
    with pytest.raises(DatasetError, match="don't pair up"):
        InMemory(torch.zeros(3, 2), torch.zeros(4))


def test_a_partition_holds_every_example_once() -> None:
    larger, smaller = partition(11, 0.3, generator(0))
    assert len(smaller) == 3
    assert sorted([*larger.tolist(), *smaller.tolist()]) == list(range(11))


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_a_stratified_partition_keeps_class_shares_within_one_example(fraction: float) -> None:
    targets = torch.tensor([0] * 50 + [1] * 23 + [3] * 7)
    larger, smaller = stratified_partition(targets, fraction, generator(0))
    assert len(smaller) == round(fraction * 80)
    assert sorted([*larger.tolist(), *smaller.tolist()]) == list(range(80))
    for label, size in ((0, 50), (1, 23), (3, 7)):
        assert abs(int((targets[smaller] == label).sum()) - fraction * size) < 1


def test_digits_are_the_published_ones() -> None:
    splits = digits()
    train, test = splits.train, splits.test
    assert isinstance(train, InMemory)
    assert isinstance(test, InMemory)
    assert (len(train), len(test)) == (1438, 359)
    assert train.inputs.dtype == torch.uint8
    assert (int(train.inputs.min()), int(train.inputs.max())) == (0, 255)
    counts = torch.bincount(torch.cat([train.targets, test.targets]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("image_shape", [None, (3, 12, 10)])
def test_synthetic_examples_can_be_learned_but_not_to_the_end(image_shape: tuple[int, int, int] | None) -> None:
    train, test, shape, num_classes = synthetic(num_examples=2000, image_shape=image_shape)
    assert isinstance(train, InMemory)
    assert isinstance(test, InMemory)
    assert (shape, num_classes) == (image_shape or (20,), 10)
    means = torch.stack([train.inputs[train.targets == c].mean(0) for c in range(10)]).flatten(1)
    error = (torch.cdist(test.inputs.flatten(1), means).argmin(1) != test.targets).double().mean().item()
    assert 0.02 < error < 0.45


def test_synthetic_examples_depend_on_the_seed_alone() -> None:
    first, again, other = (synthetic(50, seed=seed).train for seed in (0, 0, 1))
    assert torch.equal(first[3][0], again[3][0])
    assert not torch.equal(first[3][0], other[3][0])


@pytest.mark.parametrize("settings", [{"num_examples": 0}, {"num_classes": 0}, {"num_features": 0}])
def test_synthetic_refuses_counts_below_one(settings: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match="it has to be at least 1"):
        synthetic(**settings)  # type: ignore[arg-type]
