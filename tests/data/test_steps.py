"""Batches in chunks: the same examples as the whole batch, alike augmented, with weights that add up."""

from dataclasses import replace

import pytest
import torch

from hyperopt_cli.data.batches import Loading
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.errors import DatasetError
from tests.data.test_batches import Lazy, held, make

LOADING = Loading(batch_size=32, chunk_size=12, crop=1, flip=True)  # chunks of 11, 11 and 10


def test_the_chunks_of_a_step_are_its_batch_cut_up() -> None:
    data = make(LOADING)
    assert data.steps.in_chunks
    whole, chunked = data.steps.batches(5), data.steps.batches_in_chunks(5)
    for t in (0, 3, 1):
        chunks = list(chunked(t))
        assert [len(batch.targets) for batch, _ in chunks] == [11, 11, 10]
        assert [weight for _, weight in chunks] == [11 / 32, 11 / 32, 10 / 32]
        assert torch.equal(torch.cat([batch.inputs for batch, _ in chunks]), whole(t).inputs)
        assert torch.equal(torch.cat([batch.targets for batch, _ in chunks]), whole(t).targets)


def test_each_chunk_carries_a_seed_of_its_own() -> None:
    chunks = list(make(LOADING).steps.batches_in_chunks(5)(2))
    assert [batch.seed for batch, _ in chunks] == [derive(derive(5, "step", 2), i) for i in range(3)]


def test_chunks_are_the_same_at_each_reading_and_in_any_order() -> None:
    chunked = make(LOADING).steps.batches_in_chunks(0)
    ahead = {t: [batch.inputs for batch, _ in chunked(t)] for t in range(4)}
    for t in (3, 2, 2, 0):
        step = chunked(t)
        for _ in range(2):
            assert all(torch.equal(batch.inputs, x) for (batch, _), x in zip(step, ahead[t], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_chunks_of_a_step_are_bit_equal_to_resident_ones(workers: int) -> None:
    resident = make(replace(LOADING, residence="device")).steps.batches_in_chunks(0)
    streamed = make(replace(LOADING, residence="stream", workers=workers), Lazy(held())).steps.batches_in_chunks(0)
    for t in [0, 0, 1, 2, 2, 1, 1, 0]:
        pairs = zip(streamed(t), resident(t), strict=True)
        assert all(torch.equal(a.inputs, b.inputs) and a.seed == b.seed and u == v for (a, u), (b, v) in pairs)


def test_a_batch_of_all_is_the_training_split_in_one_order() -> None:
    data = make(Loading(batch_size="all", chunk_size=40))
    assert (len(data.steps.index), data.steps.per_epoch) == (91, 1)
    first, later = (list(data.steps.batches_in_chunks(0)(t)) for t in (0, 9))
    assert [len(batch.targets) for batch, _ in first] == [31, 30, 30]
    for (a, _), (b, _), (c, _) in zip(first, later, data.train_chunks, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.inputs, c.inputs)


def test_without_a_chunk_size_all_is_one_batch() -> None:
    data = make(Loading(batch_size="all"))
    assert not data.steps.in_chunks
    assert len(data.steps.batches(0)(4).targets) == 91


def test_a_batch_no_larger_than_a_chunk_stays_whole() -> None:
    assert not make(replace(LOADING, chunk_size=32)).steps.in_chunks


def test_running_statistics_are_estimated_on_chunks_as_large_as_those_trained_on() -> None:
    sizes = {len(batch.targets) for batch, _ in make(LOADING).train_chunks}
    assert max(sizes) <= 12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk_size": 0}, "chunk_size = 0: it has to be at least 1"),
        ({"batch_size": "most"}, "batch_size = 'most': allowed is a number of examples, or 'all'"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        make(replace(LOADING, **changed))  # type: ignore[arg-type]


def test_steps_before_the_first_are_refused() -> None:
    with pytest.raises(ValueError, match="t = -1"):
        make(LOADING).steps.batches_in_chunks(0)(-1)
