"""Pictures in one folder a class, decoded when they are asked for."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hyperopt_cli.data.splits import Splits, unreadable
from hyperopt_cli.errors import DatasetError, needing

LAYOUT = (
    "expected: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg, or ROOT/CLASS/*.jpg without a test split "
    "(PNG and the other formats that Pillow reads are fine too)"
)


class Images(Dataset[tuple[Tensor, int]]):
    """Pictures of one folder as RGB tensors.

    Args:
        folder: a `torchvision.datasets.ImageFolder`.
        size: height and width to bring every picture to: the short side is resized to it, the centre is cut out.
    """

    def __init__(self, folder: Any, size: int | None) -> None:
        self.samples: list[tuple[str, int]] = folder.samples
        self.classes: list[str] = folder.classes
        self.targets = torch.tensor(folder.targets)
        self.size = size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns the picture, uint8 [3, H, W], and its class."""
        from torchvision.datasets.folder import default_loader
        from torchvision.transforms import functional

        path, target = self.samples[index]
        try:
            picture = default_loader(path)
        except OSError as error:
            if error.errno is not None:  # by the system, not by what stands in it
                raise unreadable(error, index, path) from error
            raise DatasetError(f"{path} can't be read as a picture ({error}): repair it or take it out") from error
        if self.size is not None:
            picture = functional.center_crop(functional.resize(picture, [self.size]), [self.size])
        decoded: Tensor = functional.pil_to_tensor(picture)
        return decoded, target


def image_folder(root: str, test_root: str | None = None, size: int | None = None) -> Splits:
    """Returns pictures that are laid out as `ROOT/CLASS/*.jpg`, with classes in alphabetical order.

    Args:
        root: the training pictures; where it holds both `train` and `test`, these two are taken.
        test_root: the test pictures; None: those of `root/test`, if any.
        size: height and width of every input (short side resized, centre cut out); None: all have one size already.

    Returns:
        Inputs uint8 [3, H, W], decoded when read; targets 0 ... num_classes - 1.

    Raises:
        DatasetError: there are no pictures, one can't be read, or the test split has other classes.
    """
    if size is not None and size < 1:
        raise DatasetError(f"size = {size}: pictures are brought to a height and width of at least 1 pixel")
    base = Path(root).expanduser()
    train_folder, test_folder = base, None if test_root is None else Path(test_root).expanduser()
    if test_folder is None and (base / "train").is_dir() and (base / "test").is_dir():
        train_folder, test_folder = base / "train", base / "test"
    train = _open(train_folder, size)
    test = None if test_folder is None else _open(test_folder, size)
    if test is not None and test.classes != train.classes:
        raise DatasetError(
            f"{test_folder} has the classes {test.classes}, {train_folder} has {train.classes}: {LAYOUT}"
        )
    return Splits(train, test, tuple(train[0][0].shape), len(train.classes))


def _open(folder: Path, size: int | None) -> Images:
    with needing("the data set image_folder"):
        from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; {LAYOUT}")
    try:
        return Images(ImageFolder(folder), size)
    except FileNotFoundError as error:
        raise DatasetError(f"{folder}: {error}; {LAYOUT}") from error
