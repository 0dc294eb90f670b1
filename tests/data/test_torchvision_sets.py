"""MNIST and CIFAR in their original formats, whole, damaged and missing."""

import gzip
import hashlib
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
import torchvision.datasets

from hyperopt_cli.data import InMemory, cifar10, cifar100, fashion_mnist, image_folder, mnist, torchvision_sets
from hyperopt_cli.errors import DatasetError

PARTS = {"train": 6, "t10k": 3}
REAL = os.environ.get("HYPEROPT_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="HYPEROPT_DATA names no folder with MNIST/raw and cifar10")


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for part, count in PARTS.items():
        pixels = bytes(i % 256 for i in range(count * 28 * 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(range(count)))
    return folder


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_idx(tmp_path / "MNIST" / "raw")
    monkeypatch.setattr(torchvision_sets, "MNIST_MD5", {path.name: digest(path) for path in folder.iterdir()})
    return folder


def write_cifar(folder: Path, kind: type, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    folder.mkdir()

    def write(name: str, content: dict[str, object]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, digest(folder / name)]

    pixels = torch.arange(2 * 3 * 32 * 32).reshape(2, -1).to(torch.uint8).numpy()
    for part in ("train_list", "test_list"):
        names = [name for name, _ in getattr(kind, part)]
        monkeypatch.setattr(kind, part, [write(name, {"data": pixels, key: [1, 0]}) for name in names])
    name, label_key = kind.meta["filename"], kind.meta["key"]  # type: ignore[attr-defined]
    md5 = write(name, {label_key: ["a", "b"]})[1]
    monkeypatch.setattr(kind, "meta", {"filename": name, "key": label_key, "md5": md5})


def test_mnist_reads_pictures_and_labels(raw: Path) -> None:
    splits = mnist(root=str(raw.parents[1]))
    assert isinstance(splits.train, InMemory)
    assert splits.test is not None
    assert splits.train.inputs.shape == (6, 1, 28, 28)
    assert splits.train.inputs[0, 0, 1, 0] == 28
    assert splits.train.targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert (len(splits.test), splits.input_shape, splits.num_classes) == (3, (1, 28, 28), 10)


def test_a_damaged_file_is_named_with_both_digests(raw: Path) -> None:
    path = raw / "train-images-idx3-ubyte"
    right, content = digest(path), bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{path} is damaged.* is {digest(path)}, it should be {right}. Delete it"):
        mnist(root=str(raw.parents[1]))


def test_a_damaged_archive_is_named(raw: Path) -> None:
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        mnist(root=str(raw.parents[1]))


def test_fashion_mnist_is_checked_against_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion = write_idx(tmp_path / "FashionMNIST" / "raw")
    resources = []
    for path in sorted(fashion.iterdir()):
        archive = path.with_name(f"{path.name}.gz")
        archive.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((archive.name, digest(archive)))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    root = str(tmp_path)
    assert len(fashion_mnist(root=root).train) == 6
    with (fashion / "t10k-labels-idx1-ubyte").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DatasetError, match="t10k-labels-idx1-ubyte is damaged"):
        fashion_mnist(root=root)


def test_a_missing_set_says_where_it_looked_for_what_and_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        mnist(root=str(tmp_path))
    message = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "t10k-labels-idx1-ubyte" in message
    assert [remedy.add for remedy in caught.value.remedies] == [("dataset.download=true",)]


def test_a_failed_download_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    with pytest.raises(DatasetError, match=r"MNIST could not be downloaded to .*: no route to host"):
        mnist(root=str(tmp_path), download=True)


def test_cifar10_reads_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", torchvision.datasets.CIFAR10, monkeypatch, "labels")
    splits = cifar10(root=str(tmp_path))
    assert isinstance(splits.train, InMemory)
    assert splits.train.inputs.shape == (10, 3, 32, 32)
    assert splits.train.inputs[0, 0, 0, :3].tolist() == [0, 1, 2]
    assert splits.train.targets.tolist() == [1, 0] * 5
    assert (splits.input_shape, splits.num_classes) == ((3, 32, 32), 10)


def test_cifar100_reads_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-100-python", torchvision.datasets.CIFAR100, monkeypatch, "fine_labels")
    splits = cifar100(root=str(tmp_path))
    assert (len(splits.train), splits.num_classes) == (2, 100)


def test_a_damaged_cifar_batch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", torchvision.datasets.CIFAR10, monkeypatch, "labels")
    with (tmp_path / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DatasetError, match="data_batch_3 is damaged"):
        cifar10(root=str(tmp_path))


@needs_data
def test_the_original_mnist_is_read() -> None:
    splits = mnist(root=str(REAL))
    assert isinstance(splits.train, InMemory)
    assert splits.train.inputs.shape == (60_000, 1, 28, 28)
    assert splits.train.targets[:5].tolist() == [5, 0, 4, 1, 9]


@needs_data
def test_cifar10_as_a_folder_of_pictures_is_read() -> None:
    splits = image_folder(root=str(Path(str(REAL)) / "cifar10"))
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (50_000, 10_000)
    assert (splits.input_shape, splits.num_classes) == ((3, 32, 32), 10)
