"""How a run takes its examples: the settings, what they allow, and the validation split."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hyperopt_cli.data.digests import Digests, digest
from hyperopt_cli.data.partition import partition, stratified_partition
from hyperopt_cli.data.seeds import generator
from hyperopt_cli.data.splits import (
    Examples,
    InMemory,
    Splits,
    held_targets,
    is_integral,
    read_example,
    targets_of,
)
from hyperopt_cli.errors import DatasetError
from hyperopt_cli.stopping import stoppable

Residence = Literal["auto", "device", "stream"]
INPUT_DTYPES = (torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUM_PROBED = 64


@dataclass(frozen=True)
class Loading:
    """How a run takes its examples; in a recipe, keys of `dataset` beside the callable's own arguments.

    Attributes:
        batch_size: examples of a training step; "all": the whole training split at every step, in one order.
        chunk_size: a batch that is larger goes through the model in chunks of at most so many examples, alike to within
            one, exactly weighted. It bounds memory, and changes the value only where batch normalisation takes its
            statistics from each chunk. None: whole batches.
        validation_fraction: share of the training split that is held out to validate on.
        stratified: keep the shares of the classes in the validation split.
        outer_batch_size: the largest chunk of the validation loss; "all": it is never cut. It bounds memory, and
            changes the value only where batch normalisation takes its statistics from each chunk.
        crop: pixels of padding of a random crop.
        flip: mirror pictures at random.
        normalize: by mean and standard deviation of each channel of the training split; if not, uint8 is divided by
            255.
        residence: "device" holds all examples in the device's memory as stored, "stream" reads them when needed,
            "auto" streams only what takes more than 2 GiB. The bits are the same.
        workers: processes that read ahead where examples are streamed or decoded.
    """

    batch_size: int | Literal["all"] = 128
    chunk_size: int | None = None
    validation_fraction: float = 0.1
    stratified: bool = False
    outer_batch_size: int | Literal["all"] = 1000
    crop: int = 0
    flip: bool = False
    normalize: bool = True
    residence: Residence = "auto"
    workers: int = 0


def check(splits: Splits, loading: Loading, seed: int, digests: Digests) -> None:
    """Refuses settings out of range, and examples that no run could use.

    Args:
        splits: what a data set's function returned.
        loading: how to take it.
        seed: decides which examples are read twice.
        digests: the digests of the training split, to which those of these examples are added.

    Raises:
        DatasetError: a setting or an example can't be used; it says what was given and what is allowed.
        NonDeterministicError: an example changes from one reading to the next.
    """
    for name, least in {"batch_size": 1, "chunk_size": 1, "outer_batch_size": 1, "crop": 0, "workers": 0}.items():
        given = getattr(loading, name)
        if isinstance(given, int) and given < least:
            raise DatasetError(f"{name} = {given}: it has to be at least {least}")
    for name in ("batch_size", "outer_batch_size"):
        given = getattr(loading, name)
        if isinstance(given, str) and given != "all":
            raise DatasetError(f"{name} = {given!r}: allowed is a number of examples, or 'all'")
    if loading.residence not in get_args(Residence):
        raise DatasetError(
            f"residence = {loading.residence!r}: allowed are {', '.join(map(repr, get_args(Residence)))}"
        )
    if not len(splits.train):
        raise DatasetError("the training split has no examples: at least one each is needed to train and to validate")
    first = read_example(splits.train, 0)[0]
    if (loading.crop or loading.flip) and (first.ndim != 3 or first.dtype == torch.int64):
        raise DatasetError(
            f"crop and flip are for pictures (channels, height, width), the inputs are of shape {tuple(first.shape)} "
            f"and {first.dtype}: leave both out"
        )
    if first.dtype not in INPUT_DTYPES:
        raise DatasetError(f"inputs are {first.dtype}: allowed are {', '.join(map(str, INPUT_DTYPES))}")
    if not isinstance(splits.train, InMemory):
        _probe(splits.train, seed, digests)


def split(splits: Splits, loading: Loading, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the indices to train on and those to validate on, drawn from `derive(seed, "split")`.

    Raises:
        DatasetError: there are too few examples, or `stratified` is set where targets are numbers.
    """
    rng = generator(seed, "split")
    if not loading.stratified:
        return partition(len(splits.train), loading.validation_fraction, rng)
    targets = targets_of(splits.train)
    if splits.num_classes is None or targets.ndim != 1 or not is_integral(targets):
        raise DatasetError("stratified = true needs one class for each example, these are numbers: leave it out")
    return stratified_partition(targets, loading.validation_fraction, rng)


def _probe(examples: Examples, seed: int, digests: Digests) -> None:
    """Reads examples twice: drawn from all, and one of each class, for a rare one may be all that is augmented."""
    drawn = torch.randperm(len(examples), generator=generator(seed, "probe"))
    index = drawn[:NUM_PROBED].tolist()
    targets = held_targets(examples)
    if targets is not None and targets.ndim == 1 and is_integral(targets):
        first_of_class = dict(zip(targets[drawn].tolist(), drawn.tolist(), strict=True))
        index += list(first_of_class.values())[:NUM_PROBED]
    for i in stoppable(dict.fromkeys(index)):
        for _ in range(2):
            digests.compare([i], [digest(*read_example(examples, i))])
