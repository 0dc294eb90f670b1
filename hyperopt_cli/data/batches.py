"""What a training run draws from: batches as a pure function of the step, and fixed chunks of each split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from hyperopt_cli.data.chunks import Batch, Chunks, Preparation, Source
from hyperopt_cli.data.digests import Digests
from hyperopt_cli.data.loading import Loading, check, split
from hyperopt_cli.data.partition import consecutive
from hyperopt_cli.data.preparation import Augmentation, Normalization, channel_statistics, identity_normalization
from hyperopt_cli.data.resident import Resident, fits, read_all
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.data.shares import Shares, Weigh
from hyperopt_cli.data.splits import Examples, InMemory, Splits, held_targets, targets_of
from hyperopt_cli.data.steps import Steps
from hyperopt_cli.data.streaming import READ_AT_ONCE, Streaming
from hyperopt_cli.errors import DatasetError

__all__ = ["Batch", "Chunks", "Data", "Loading", "load"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Data:
    """A data set as a run sees it; `load` makes it.

    Attributes:
        input_shape: the shape of one input.
        num_classes: None for regression.
        train_chunks: the training split without augmentation, for its loss and for running statistics.
        validation: the validation split.
        test: the test split, or None.
        steps: what training draws from.
        targets: of the data set's training and test split, where they are at hand; by "training" and "test".
    """

    input_shape: tuple[int, ...]
    num_classes: int | None
    train_chunks: Chunks
    validation: Chunks
    test: Chunks | None
    steps: Steps
    targets: Mapping[str, Tensor] = field(default_factory=dict)


def load(
    splits: Splits,
    loading: Loading,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    weigh: Weigh | None = None,
    summed: bool = False,
) -> Data:
    """Splits off the validation examples, places all examples, and computes the normalisation.

    Args:
        splits: what a data set's function returned (`as_splits`).
        loading: how to take it.
        seed: the validation split is drawn from `derive(seed, "split")`.
        device: where batches are made.
        dtype: the dtype of the inputs.
        weigh: what each example counts in the loss, from the targets; None: all count alike.
        summed: whether the loss is a sum over examples.

    Raises:
        DatasetError: settings out of range, or too few examples for them.
        NonDeterministicError: an example changes from one reading to the next.
    """
    digests = Digests(len(splits.train))
    check(splits, loading, seed, digests)
    train_index, validation_index = split(splits, loading, seed)
    batch_size = len(train_index) if isinstance(loading.batch_size, str) else loading.batch_size
    if batch_size > len(train_index):
        raise DatasetError(
            f"batch_size = {batch_size} is larger than the training split of {len(train_index)} examples "
            f"({len(validation_index)} validate): allowed is up to {len(train_index)}"
        )
    train = _held(splits.train, loading, digests)
    prepare = Preparation(
        _normalization(train, train_index, loading, digests).to(device, dtype),
        Augmentation(loading.crop, loading.flip),
        target_dtype=dtype if splits.num_classes is None else torch.int64,
    )
    source = _source(train, loading, device, digests)

    shares = _shares(train, weigh, summed)
    outer_size = max(len(splits.train), len(splits.test or ())) if loading.outer_batch_size == "all" else None

    def chunks(source: Source, index: Tensor, name: str, size: int | None = None, shares: Shares = shares) -> Chunks:
        largest = size or outer_size or cast(int, loading.outer_batch_size)
        return Chunks(source, index, largest, prepare, derive(seed, name), shares)

    test, targets = None, {"training": held_targets(train)}
    if splits.test is not None and len(splits.test):
        of_test = Digests(len(splits.test))
        held = _held(splits.test, loading, of_test)
        test_source, targets["test"] = _source(held, loading, device, of_test), held_targets(held)
        every = torch.arange(len(splits.test))
        test = chunks(test_source, every, "test", shares=_shares(held, weigh, summed))
    return Data(
        input_shape=tuple(splits.input_shape),
        num_classes=splits.num_classes,
        train_chunks=chunks(source, train_index, "train", min(batch_size, loading.chunk_size or batch_size)),
        validation=chunks(source, validation_index, "validation"),
        test=test,
        steps=Steps(source, train_index, prepare, batch_size, loading.chunk_size, loading.batch_size != "all", shares),
        targets={name: at_hand for name, at_hand in targets.items() if at_hand is not None},
    )


def _shares(examples: Examples, weigh: Weigh | None, summed: bool) -> Shares:
    if weigh is None or summed:
        return Shares(summed=summed)
    return Shares(weigh(targets_of(examples)))


def _held(examples: Examples, loading: Loading, digests: Digests) -> Examples:
    """Returns the examples in memory if they are to be held on the device, otherwise as they are."""
    return read_all(examples, loading.workers, digests) if _is_held(examples, loading) else examples


def _source(examples: Examples, loading: Loading, device: torch.device, digests: Digests) -> Source:
    if isinstance(examples, InMemory) and _is_held(examples, loading):
        return Resident(examples, device)
    return Streaming(examples, device, loading.workers, digests)


def _is_held(examples: Examples, loading: Loading) -> bool:
    return loading.residence == "device" or (loading.residence == "auto" and fits(examples))


def _normalization(train: Examples, train_index: Tensor, loading: Loading, digests: Digests) -> Normalization:
    """Statistics on the CPU in chunks of a fixed size, so that residence and device don't change a bit of them."""
    stored = train[0][0].dtype
    if not loading.normalize or stored == torch.int64:
        return identity_normalization(stored)
    source = _source(train, loading, CPU, digests)
    return channel_statistics(raw.inputs for raw in source.walk(consecutive(train_index, READ_AT_ONCE)))
