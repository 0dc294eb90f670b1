"""Pictures in folders: layouts, sizes, and what is said when something is wrong."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperopt_cli.data import image_folder
from hyperopt_cli.data.batches import Loading, load
from hyperopt_cli.errors import DatasetError

RED = (200, 10, 30)


def paint(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, RED).convert(mode).save(path)


def fill(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4, suffix: str = "png") -> Path:
    for name in classes:
        for i in range(count):
            paint(root / name / f"{i}.{suffix}")
    return root


def test_pictures_are_rgb_tensors_and_classes_alphabetical(tmp_path: Path) -> None:
    splits = image_folder(str(fill(tmp_path)))
    picture, target = splits.train[7]
    assert (picture.shape, picture.dtype, target) == ((3, 4, 6), torch.uint8, 1)
    assert tuple(picture[:, 0, 0].tolist()) == RED
    assert (splits.test, splits.input_shape, splits.num_classes) == (None, (3, 4, 6), 2)


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "0.png", mode="L")
    assert image_folder(str(tmp_path)).input_shape == (3, 4, 6)


def test_train_and_test_are_taken_where_both_exist(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=1, suffix="jpg")
    splits = image_folder(str(tmp_path))
    assert splits.test is not None
    assert (len(splits.train), len(splits.test), splits.num_classes) == (8, 2, 2)


def test_a_test_root_of_its_own_is_taken(tmp_path: Path) -> None:
    splits = image_folder(str(fill(tmp_path / "a")), test_root=str(fill(tmp_path / "b", count=3)))
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (8, 6)


def test_size_resizes_the_short_side_and_cuts_out_the_centre(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "0.png", size=(30, 10))
    paint(tmp_path / "cat" / "1.png", size=(7, 9))
    train = image_folder(str(tmp_path), size=8).train
    assert train[0][0].shape == train[1][0].shape == (3, 8, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_differing_shapes_without_size_are_explained(tmp_path: Path, workers: int) -> None:
    fill(tmp_path)
    paint(tmp_path / "dog" / "9.png", size=(5, 5))
    splits, loading = image_folder(str(tmp_path)), Loading(batch_size=2, workers=workers)
    # anchored at both ends: what a worker finds has to arrive without its traceback
    with pytest.raises(DatasetError, match=r"^inputs of the shapes .*\(3, 5, 5\) .* dataset\.size=32$"):
        load(splits, loading, seed=0, device=torch.device("cpu"), dtype=torch.float32)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    picture = tmp_path / "cat" / "2.png"
    picture.write_bytes(picture.read_bytes()[:50])
    with pytest.raises(DatasetError, match=r"2\.png can't be read as a picture"):
        image_folder(str(tmp_path)).train[2]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_no_pictures_are_explained_by_the_layout(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=f"{name}.*expected: ROOT/train/CLASS"):
        image_folder(str(tmp_path / name))


def test_other_classes_in_the_test_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", classes=("cat", "owl"))
    with pytest.raises(DatasetError, match=r"has the classes \['cat', 'owl'\]"):
        image_folder(str(tmp_path))


def test_a_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="size = 0"):
        image_folder(str(fill(tmp_path)), size=0)
