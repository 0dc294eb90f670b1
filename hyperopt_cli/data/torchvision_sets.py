"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, read and downloaded by torchvision, their files checked here.

torchvision checks CIFAR's own files but says neither which is damaged nor how; of MNIST's it only checks that they are
there. Folders below `root` are torchvision's: MNIST/raw, FashionMNIST/raw, cifar-10-batches-py, cifar-100-python.
"""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import torch

from hyperopt_cli.data.checksums import require_files, require_md5
from hyperopt_cli.data.splits import InMemory, Splits
from hyperopt_cli.errors import DatasetError, needing

CACHE = "~/.cache/hyperopt"

# of the files as they lie unpacked; torchvision knows only the archives
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(root: str = CACHE, download: bool = False) -> Splits:
    """Returns MNIST, 60,000 + 10,000 handwritten digits (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist/).

    Args:
        root: the folder that holds `MNIST/raw`.
        download: fetch the files that are missing.

    Returns:
        Inputs uint8 [N, 1, 28, 28]; targets int64 [N], 0 ... 9.

    Raises:
        DatasetError: files are missing or damaged, or the download failed.
    """
    with needing("the data set mnist"):
        from torchvision.datasets import MNIST

    return _mnist_like(MNIST, root, download, MNIST_MD5)


def fashion_mnist(root: str = CACHE, download: bool = False) -> Splits:
    """Returns Fashion-MNIST, 60,000 + 10,000 pieces of clothing (Xiao et al. 2017, https://arxiv.org/abs/1708.07747).

    Arguments, shapes and errors are those of `mnist`. Unpacked files are checked against their archives where these are
    kept.
    """
    with needing("the data set fashion_mnist"):
        from torchvision.datasets import FashionMNIST

    return _mnist_like(FashionMNIST, root, download, {})


def cifar10(root: str = CACHE, download: bool = False) -> Splits:
    """Returns CIFAR-10, 50,000 + 10,000 pictures (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
        root: the folder that holds `cifar-10-batches-py`.
        download: fetch the files that are missing.

    Returns:
        Inputs uint8 [N, 3, 32, 32]; targets int64 [N], 0 ... 9.

    Raises:
        DatasetError: files are missing or damaged, or the download failed.
    """
    with needing("the data set cifar10"):
        from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, root, download, num_classes=10)


def cifar100(root: str = CACHE, download: bool = False) -> Splits:
    """Returns CIFAR-100 with its 100 fine classes, from `root/cifar-100-python`; the rest is as for `cifar10`."""
    with needing("the data set cifar100"):
        from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, root, download, num_classes=100)


def _mnist_like(kind: Any, root: str, download: bool, known: dict[str, str]) -> Splits:
    folder = Path(root).expanduser()
    raw = folder / kind.__name__ / "raw"
    if download:
        _download(kind, folder)
    archives = dict(kind.resources)
    require_files(raw, [name.removesuffix(".gz") for name in archives])
    for name, digest in archives.items():
        archive, unpacked = raw / name, (raw / name).with_suffix("")
        expected = known.get(unpacked.name)
        if archive.is_file():
            require_md5(archive, digest)
            expected = expected or hashlib.md5(gzip.decompress(archive.read_bytes())).hexdigest()
        if expected is not None:
            require_md5(unpacked, expected)
    train, test = (_in_memory(kind(folder, train=train), channels_last=False) for train in (True, False))
    return Splits(train, test, tuple(train.inputs.shape[1:]), 10)


def _cifar(kind: Any, root: str, download: bool, num_classes: int) -> Splits:
    folder = Path(root).expanduser()
    if download:
        _download(kind, folder)
    digests = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    require_files(folder / kind.base_folder, digests)
    for name, digest in digests.items():
        require_md5(folder / kind.base_folder / name, digest)
    train, test = (_in_memory(kind(folder, train=train), channels_last=True) for train in (True, False))
    return Splits(train, test, tuple(train.inputs.shape[1:]), num_classes)


def _download(kind: Any, folder: Path) -> None:
    try:
        kind(folder, download=True)
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"{kind.__name__} could not be downloaded to {folder}: {error}. "
            "Check the network and the folder, or put the files there by hand and leave dataset.download out"
        ) from error


def _in_memory(read: Any, *, channels_last: bool) -> InMemory:
    data = torch.as_tensor(read.data)
    inputs = data.permute(0, 3, 1, 2).contiguous() if channels_last else data.unsqueeze(1)
    return InMemory(inputs, torch.as_tensor(read.targets, dtype=torch.int64))
