"""What a data set's function returns: a training split, perhaps a test split, and what a model needs to know."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from hyperopt_cli.errors import DatasetError, HyperoptError
from hyperopt_cli.stopping import stoppable

ACCEPTED = (
    "a data set's function may return Splits, a pair of tensors (inputs, targets), "
    "one map-style Dataset, or a pair (train, test) of Datasets"
)


@runtime_checkable
class Examples(Protocol):
    """A map-style data set of pairs (input, target); reading one twice gives the same bits.

    Inputs are tensors of one shape: uint8, floating point, or int64, which stands for indices such as tokens.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """Examples held in two tensors.

    Args:
        inputs: [N, ...], uint8, floating point or int64.
        targets: [N, ...], classes as integers, or numbers.

    Raises:
        DatasetError: the two lengths differ.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            shapes = f"inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}"
            raise DatasetError(f"{shapes} don't pair up: both need the number of examples as their first dimension")
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class Splits(NamedTuple):
    """A data set as its function hands it over.

    Attributes:
        train: the examples to train on; the validation split is taken from them.
        test: the examples of the final figure, or None.
        input_shape: the shape of one input, e.g. (3, 32, 32).
        num_classes: None for regression.
    """

    train: Examples
    test: Examples | None
    input_shape: tuple[int, ...]
    num_classes: int | None


class Labelled(Dataset[tuple[Tensor, Any]]):
    """Examples whose targets have been read, so that nobody reads them all again.

    Args:
        examples: as they are.
        targets: of each, [N, ...].
    """

    def __init__(self, examples: Examples, targets: Tensor) -> None:
        self.examples, self.targets = examples, targets

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.examples[index]


def as_splits(returned: object) -> Splits:
    """Brings what a data set's function returned into the form of `Splits`.

    Args:
        returned: `Splits`, tensors `(inputs [N, ...], targets [N])`, a map-style Dataset, or a pair (train, test) of
            these. Integer targets make a classification with max + 1 classes, anything else a regression.

    Raises:
        DatasetError: it is something else or empty, or its examples aren't pairs (tensor, target).

    >>> as_splits((torch.zeros(4, 3), torch.tensor([0, 2, 1, 0])))[2:]
    ((3,), 3)
    """
    if isinstance(returned, Splits):
        return returned
    if isinstance(returned, tuple) and len(returned) == 2 and not all(isinstance(part, Tensor) for part in returned):
        train, test = _examples(returned[0]), _examples(returned[1])
    else:
        train, test = _examples(returned), None
    if len(train) == 0:
        raise DatasetError("the training split has no examples: at least one each is needed to train and to validate")
    shape = tuple(read_example(train, 0)[0].shape)
    targets = [targets_of(split) for split in (train, test) if split is not None and len(split)]
    train, test = _labelled(train, targets[0]), test if test is None or not len(test) else _labelled(test, targets[1])
    num_classes = 1 + max(int(each.max()) for each in targets) if all(map(is_integral, targets)) else None
    return Splits(train, test, shape, num_classes)


def targets_of(examples: Examples) -> Tensor:
    """Returns all targets [N, ...], from the attribute `targets` if there is one, otherwise by reading the examples."""
    held = held_targets(examples)
    if held is not None:
        return held
    targets: list[Tensor] = []
    for i in stoppable(range(len(examples))):
        targets.append(torch.as_tensor(read_example(examples, i)[1]))
        require_like(targets[-1], targets[0], i, "target")
    return torch.stack(targets)


def read_example(examples: Examples, i: int) -> tuple[Tensor, Any]:
    """Returns example i, a pair of an input and a target.

    Raises:
        DatasetError: the data set raised an error, or the example is no pair (tensor, target).
    """
    try:
        example: object = examples[i]
    except (HyperoptError, MemoryError):
        raise
    except OSError as error:
        raise unreadable(error, i) from error
    except Exception as error:
        raise DatasetError(
            f"example {i} can't be read ({type(error).__name__}: {error}): repair it or take it out"
        ) from error
    if not (isinstance(example, tuple | list) and len(example) == 2 and isinstance(example[0], Tensor)):
        raise DatasetError(
            f"example {i} is {_describe(example)}: each has to be a pair (tensor, target); "
            "for pictures pass transform=torchvision.transforms.PILToTensor()"
        )
    return example[0], example[1]


def unreadable(error: OSError, example: int | None = None, path: str | None = None) -> DatasetError:
    """Returns the error that names a file that can't be read: it was deleted, its disk is gone, or it is damaged."""
    which = "" if example is None else f"example {example}"
    if error.errno is None:  # said by what decodes it, not by the system
        return DatasetError(
            f"{which or path} can't be read ({type(error).__name__}: {error}): repair it or take it out"
        )
    what = path or error.filename or which or "a file of the data set"
    return DatasetError(
        f"{what} can't be read ({error.strerror or error}): a data set that is streamed has to "
        f"stay where it is as long as a run goes on; bring it back, or mount its disk again{which and f' ({which})'}"
    )


def require_like(x: Tensor, first: Tensor, i: int, what: str) -> None:
    """Refuses an input or a target of another shape than the first.

    Args:
        x: the input or target of example `i`.
        first: that of the first example.
        i: the index of the example.
        what: what it is called in the message, such as `input`.

    Raises:
        DatasetError: the shapes differ; it names both, and the example.
    """
    if x.shape != first.shape:
        raise DatasetError(
            f"{what}s of the shapes {tuple(first.shape)} and {tuple(x.shape)} (example {i}) don't fit in one batch: "
            "bring them to one shape, for an image_folder by dataset.size, e.g. dataset.size=32"
        )


def held_targets(examples: Examples) -> Tensor | None:
    """Returns all targets from the attribute `targets`; None if there is none of the data set's length."""
    held = getattr(examples, "targets", None)
    return torch.as_tensor(held) if isinstance(held, Sequence | Tensor) and len(held) == len(examples) else None


def is_integral(tensor: Tensor) -> bool:
    """Returns whether a tensor holds integers or Booleans."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def _examples(given: object) -> Examples:
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, Tensor) for part in given):
        return InMemory(*given)
    if isinstance(given, TensorDataset) and len(given.tensors) == 2:
        return InMemory(*given.tensors)
    if isinstance(given, Tensor | tuple | list | dict | str) or not isinstance(given, Examples):
        raise DatasetError(f"got {_describe(given)}: {ACCEPTED}")
    return given


def _describe(given: object) -> str:
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {len(given)}: ({', '.join(type(part).__name__ for part in given)})"
    return f"a {type(given).__name__}"


def _labelled(examples: Examples, targets: Tensor) -> Examples:
    return examples if hasattr(examples, "targets") else Labelled(examples, targets)
