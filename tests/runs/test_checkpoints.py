"""Checkpoints: a damaged one is named and passed over, none is ever half written, strangers' run no code."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.errors import CheckpointError, StorageError
from hyperopt_cli.runs.checkpoints import MANIFEST, STATE, Checkpoints, on_host
from hyperopt_cli.runs.directory import LATEST

DEPENDS = {"threads": 1}


def tree_of(n: int) -> dict[str, Any]:
    weights = torch.randn(50, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return {"n": n, "weights": {"w": weights, "slots": [weights[:2], None, "text", 1.5]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two good checkpoints."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for n in (1, 2):
        checkpoints.write(n, 0, tree_of(n), DEPENDS, is_best=n == 1)
    return tmp_path / "checkpoints"


def is_tree(found: Any, n: int) -> bool:
    want = tree_of(n)
    return found.tree["n"] == n and torch.equal(found.tree["weights"]["w"], want["weights"]["w"])


def test_the_newest_comes_back_with_every_bit(folder: Path) -> None:
    found = Checkpoints(folder).newest()
    assert found is not None
    assert is_tree(found, 2)
    assert found.tree["weights"]["slots"][1:] == [None, "text", 1.5]
    assert (found.name, found.passed_over, found.bits_depend_on) == ("outer-000002", (), DEPENDS)
    assert (folder / LATEST).read_text() == "outer-000002\n"


def test_without_any_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").newest() is None


def truncated(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def missing(path: Path, draw: random.Random) -> None:
    path.unlink()


def longer(path: Path, draw: random.Random) -> None:
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 100)))


def other(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.randrange(200)))


def other_version(path: Path, draw: random.Random) -> None:
    manifest = path.parent / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": draw.choice([0, 2, "1", None])}))


DAMAGE = (truncated, flipped, missing, longer, other, other_version)


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    damage, name = DAMAGE[seed % len(DAMAGE)], draw.choice([STATE, STATE, MANIFEST])
    path = folder / "outer-000002" / name
    before = path.read_bytes()
    damage(path, draw)
    changed = damage is other_version or not path.exists() or path.read_bytes() != before
    assert changed
    found = Checkpoints(folder).newest()
    assert found is not None
    if found.name == "outer-000002":  # a blank more in the manifest, or another date of it
        assert name == MANIFEST
        assert is_tree(found, 2)
        return
    assert found.name == "outer-000001"
    assert is_tree(found, 1)
    (said,) = found.passed_over
    assert said.startswith("outer-000002: ")
    assert "Traceback" not in said


def test_where_none_can_be_used_that_is_said_and_nothing_deleted(folder: Path) -> None:
    for name in ("outer-000001", "outer-000002"):
        truncated(folder / name / STATE, random.Random(0))
    before = sorted(folder.rglob("*"))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used \(outer-000002: state.pt has .*outer-000001"):
        Checkpoints(folder).newest()
    assert sorted(folder.rglob("*")) == before


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("hacked",)


def test_a_strangers_checkpoint_runs_no_code(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its hash is right: it was made on purpose."""
    import hashlib

    monkeypatch.chdir(tmp_path)
    state, manifest = folder / "outer-000002" / STATE, folder / "outer-000002" / MANIFEST
    torch.save({"n": Evil()}, state)
    told = json.loads(manifest.read_text())
    told["files"][STATE] = {"bytes": state.stat().st_size, "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(told))
    found = Checkpoints(folder).newest()
    assert found is not None
    assert found.name == "outer-000001"
    assert not (tmp_path / "hacked").exists()
    torch.load(state, weights_only=False)  # that is what it would have done
    assert (tmp_path / "hacked").exists()


def test_the_last_two_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for n in range(1, 8):
        checkpoints.write(n, 0, {"n": n}, DEPENDS, is_best=n in (1, 3))
    assert checkpoints.names() == ["outer-000007", "outer-000006", "outer-000003"]
    checkpoints.write(7, 350, {"n": 7}, DEPENDS, is_best=False)
    assert checkpoints.names() == ["outer-000007-00000350", "outer-000007", "outer-000003"]


def test_a_damaged_one_of_the_same_name_goes_out_of_the_way(folder: Path) -> None:
    truncated(folder / "outer-000002" / STATE, random.Random(0))
    Checkpoints(folder).write(2, 0, tree_of(2), DEPENDS, is_best=False)
    found = Checkpoints(folder).newest()
    assert found is not None
    assert found.name == "outer-000002"
    assert is_tree(found, 2)
    assert len(list(folder.glob("replaced-outer-000002-*"))) == 1


def test_a_disk_without_room_leaves_the_last_one_intact(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(StorageError, match=r"can't be written \(No space left on device\); the last one is intact"):
            Checkpoints(folder).write(3, 0, tree_of(3), DEPENDS, is_best=False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    found = Checkpoints(folder).newest()
    assert found is not None
    assert is_tree(found, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_said(folder: Path) -> None:
    folder.chmod(0o500)
    with pytest.raises(StorageError, match="can't be written"):
        Checkpoints(folder).write(3, 0, tree_of(3), DEPENDS, is_best=False)
    folder.chmod(0o700)


def test_one_that_was_being_written_when_the_process_died_is_not_seen(folder: Path) -> None:
    shutil.copytree(folder / "outer-000002", folder / ".outer-000003.abcd.tmp")
    assert Checkpoints(folder).names() == ["outer-000002", "outer-000001"]


def test_what_could_not_be_read_again_is_not_written(folder: Path) -> None:
    with pytest.raises(TypeError, match="a checkpoint holds a TorchVersion"):
        Checkpoints(folder).write(3, 0, {"torch": torch.__version__}, DEPENDS, is_best=False)
    assert Checkpoints(folder).names() == ["outer-000002", "outer-000001"]


def test_a_view_is_kept_without_what_lies_around_it() -> None:
    whole = torch.zeros(1000)
    (kept,) = on_host([whole[:10]])
    assert kept.untyped_storage().nbytes() == 40
