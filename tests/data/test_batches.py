"""Batches as a pure function of the step, chunks that add up, and the same bits from memory and from disk."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hyperopt_cli.data import InMemory, Splits
from hyperopt_cli.data.batches import Batch, Data, Loading, load
from hyperopt_cli.data.seeds import derive, generator
from hyperopt_cli.data.splits import Examples
from hyperopt_cli.errors import DatasetError, NonDeterministicError

LOADING = Loading(batch_size=16, outer_batch_size=30, crop=1, flip=True)


class Lazy(Dataset[tuple[Tensor, int]]):
    """The same examples, read one by one."""

    def __init__(self, held: InMemory) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.held.inputs[index], int(self.held.targets[index])


def held(count: int = 101) -> InMemory:
    pictures = torch.randint(0, 256, (count, 2, 4, 4), dtype=torch.uint8, generator=generator(7))
    return InMemory(pictures, torch.arange(count) % 4)


def make(
    loading: Loading = LOADING, train: Examples | None = None, test: Examples | None = None, seed: int = 0
) -> Data:
    splits = Splits(held() if train is None else train, test, (2, 4, 4), 4)
    return load(splits, loading, seed=seed, device=torch.device("cpu"), dtype=torch.float32)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and a.seed == b.seed


def test_a_batch_is_the_same_in_any_order_and_number_of_calls() -> None:
    first, second = make().steps.batches(3), make().steps.batches(3)
    ascending = [first(t) for t in range(20)]
    order = [*range(20), 5, 5]
    random.Random(0).shuffle(order)
    assert all(same(second(t), ascending[t]) for t in order)


def test_an_epoch_shows_every_example_at_most_once_and_epochs_differ() -> None:
    inputs = torch.arange(50.0)[:, None]
    splits = Splits(InMemory(inputs, torch.zeros(50, dtype=torch.int64)), None, (1,), 1)
    loading = Loading(batch_size=7, normalize=False)
    data = load(splits, loading, seed=0, device=torch.device("cpu"), dtype=torch.float32)
    batch = data.steps.batches(0)
    assert data.steps.per_epoch == 45 // 7
    epochs = [[int(x) for t in range(6) for x in batch(6 * e + t).inputs] for e in range(3)]
    assert all(len(set(epoch)) == 42 for epoch in epochs)
    assert epochs[0] != epochs[1]
    validation = {int(x) for chunk, _ in data.validation for x in chunk.inputs}
    assert not validation & {x for epoch in epochs for x in epoch}


def test_another_seed_gives_other_batches_of_the_same_split() -> None:
    data = make()
    assert not torch.equal(data.steps.batches(0)(0).inputs, data.steps.batches(1)(0).inputs)
    assert same(data.validation[0][0], make().validation[0][0])
    assert not torch.equal(data.validation[0][0].inputs, make(seed=1).validation[0][0].inputs)


def test_each_step_carries_its_own_seed() -> None:
    assert [make().steps.batches(4)(t).seed for t in range(3)] == [derive(4, "step", t) for t in range(3)]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    make(replace(LOADING, residence="stream")).steps.batches(0)(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_bit_equal_to_resident_ones(workers: int) -> None:
    resident = make(replace(LOADING, residence="device")).steps.batches(0)
    streamed = make(replace(LOADING, residence="stream", workers=workers), Lazy(held())).steps.batches(0)
    shuffled = random.Random(0).sample(range(13), 6)
    for t in [*range(8), *reversed(range(8)), 12, 12, *shuffled, 5, 4, 3]:
        assert same(streamed(t), resident(t)), t


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_chunks_are_bit_equal_to_resident_ones(workers: int) -> None:
    loading = replace(LOADING, validation_fraction=0.5, outer_batch_size=20)
    resident = make(replace(loading, residence="device"), test=held(33))
    streamed = make(replace(loading, residence="stream", workers=workers), Lazy(held()), Lazy(held(33)))
    assert streamed.test is not None
    assert resident.test is not None
    for split, other in (
        (streamed.validation, resident.validation),
        (streamed.test, resident.test),
        (streamed.train_chunks, resident.train_chunks),
    ):
        pairs = list(zip(split, other, strict=True))
        assert all(same(a, b) and u == v for (a, u), (b, v) in pairs)
        assert same(split[-1][0], pairs[-1][1][0])


def test_a_dataset_read_one_by_one_is_held_when_it_fits() -> None:
    lazy = Lazy(held())
    data = make(LOADING, lazy)
    lazy.held = held(0)
    assert same(data.steps.batches(0)(2), make().steps.batches(0)(2))


def test_weighted_chunks_add_up_to_the_mean_when_ragged() -> None:
    data = make(replace(LOADING, validation_fraction=0.7))
    whole = make(replace(LOADING, validation_fraction=0.7, outer_batch_size=1000)).validation
    assert [len(batch.targets) for batch, _ in data.validation] == [24, 24, 23]
    assert sum(weight for _, weight in data.validation) == pytest.approx(1, abs=1e-15)
    mean = sum(weight * batch.inputs.double().mean() for batch, weight in data.validation)
    torch.testing.assert_close(mean, whole[0][0].inputs.double().mean(), rtol=1e-12, atol=1e-12)


def test_every_example_is_counted_once() -> None:
    data = make(test=held(9))
    assert data.test is not None
    assert [sum(map(len, part.indices)) for part in (data.train_chunks, data.validation, data.test)] == [91, 10, 9]
    assert make().test is None


def test_the_training_split_alone_sets_the_normalisation() -> None:
    data = make()
    inputs = torch.cat([batch.inputs for batch, _ in data.train_chunks]).double()
    assert inputs.mean((0, 2, 3)).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert inputs.std((0, 2, 3), correction=0).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_stratified_split_keeps_the_shares_of_the_classes() -> None:
    data = make(replace(LOADING, stratified=True, validation_fraction=0.2))
    counts = torch.bincount(torch.cat([batch.targets for batch, _ in data.validation])).tolist()
    assert sorted(counts) == [5, 5, 5, 5]


def test_targets_of_a_regression_take_the_dtype_of_the_run() -> None:
    splits = Splits(InMemory(torch.randn(20, 2), torch.randn(20)), None, (2,), None)
    data = load(splits, Loading(batch_size=4), seed=0, device=torch.device("cpu"), dtype=torch.float64)
    batch = data.steps.batches(0)(0)
    assert batch.inputs.dtype == batch.targets.dtype == torch.float64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction = 0.0: it has to lie between 0 and 1"),
        ({"validation_fraction": 1.5}, "validation_fraction = 1.5"),
        ({"validation_fraction": 0.001}, "101 examples splits them into 101 to train on and 0 to validate on"),
        ({"batch_size": 92}, "batch_size = 92 is larger than the training split of 91 examples"),
        ({"batch_size": 0}, "batch_size = 0: it has to be at least 1"),
        ({"outer_batch_size": 0}, "outer_batch_size = 0"),
        ({"crop": -1}, "crop = -1: it has to be at least 0"),
        ({"residence": "disk"}, "residence = 'disk': allowed are 'auto', 'device', 'stream'"),
    ],
)
def test_impossible_settings_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        make(replace(LOADING, **changed))  # type: ignore[arg-type]


def test_pictures_alone_are_cropped() -> None:
    splits = Splits(InMemory(torch.randn(20, 2), torch.zeros(20)), None, (2,), None)
    with pytest.raises(DatasetError, match="crop and flip are for pictures"):
        load(splits, Loading(batch_size=2, flip=True), seed=0, device=torch.device("cpu"), dtype=torch.float32)


def test_numbers_are_not_stratified() -> None:
    splits = Splits(InMemory(torch.randn(20, 2), torch.randn(20)), None, (2,), None)
    with pytest.raises(DatasetError, match="stratified = true needs one class"):
        load(splits, Loading(stratified=True), seed=0, device=torch.device("cpu"), dtype=torch.float32)


def test_examples_that_change_between_readings_are_refused() -> None:
    class Noisy(Lazy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.randn(2, 4, 4), 0

    with pytest.raises(NonDeterministicError, match="read twice, gave two inputs"):
        make(LOADING, Noisy(held()))


def test_steps_before_the_first_are_refused() -> None:
    with pytest.raises(ValueError, match="t = -1"):
        make().steps.batches(0)(-1)
