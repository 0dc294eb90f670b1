"""Checkpoints: a damaged one is named and passed over, none is ever half written, strangers' run no code."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.errors import CheckpointError, StorageError
from hyperopt_cli.run_directory.checkpoints import MANIFEST, STATE, VERSION, Checkpoints, on_host
from hyperopt_cli.run_directory.directory import LATEST

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
    manifest.write_text(
        json.dumps({**json.loads(manifest.read_text()), "version": draw.choice([0, VERSION + 1, "1", None])})
    )


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
    Checkpoints(folder).write(3, 0, tree_of(3), DEPENDS, is_best=False)
    assert not list(folder.glob("replaced-*"))


def test_what_is_out_of_the_way_stays_as_long_as_nothing_newer_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncated(folder / "outer-000002" / STATE, random.Random(0))
    checkpoints = Checkpoints(folder)
    checkpoints.write(2, 0, tree_of(2), DEPENDS, is_best=False)

    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(StorageError):
            checkpoints.write(3, 0, tree_of(3), DEPENDS, is_best=False)
    assert len(list(folder.glob("replaced-outer-000002-*"))) == 1


def test_killed_while_one_is_replaced_it_is_put_back(folder: Path) -> None:
    (folder / "outer-000002").rename(folder / "replaced-outer-000002-0123abcd")
    checkpoints = Checkpoints(folder)
    checkpoints.clean()
    found = checkpoints.newest()
    assert found is not None
    assert is_tree(found, 2)


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


def items(num: int, num_bytes: int) -> Iterator[dict[str, Any]]:
    for i in range(num):
        yield {"i": i, "w": torch.full((num_bytes // 8,), float(i), dtype=torch.float64)}


def test_an_iterator_is_written_as_its_items_come_and_comes_back_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperopt_cli.run_directory.checkpoints.PART_BYTES", 200)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, 0, {"a": {"b": items(5, 80)}, "none": items(0, 0)}, DEPENDS, is_best=False)
    assert len(list(tmp_path.rglob("part-*.pt"))) == 2
    found = checkpoints.newest()
    assert found is not None
    for i, item in enumerate(found.tree["a"]["b"]):
        assert item["i"] == i
        assert torch.equal(item["w"], torch.full((10,), float(i), dtype=torch.float64))
    assert i == 4
    assert list(found.tree["none"]) == []


MANY_STATES = """
import sys
from pathlib import Path
import torch
from hyperopt_cli.modes.adjoint.snapshots import CopiedSnapshots
from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.memory import taken_by
from hyperopt_cli.run_directory import checkpoints

checkpoints.PART_BYTES = 2**23
snapshots = CopiedSnapshots(24)
for i in range(24):
    snapshots.push(State({"": torch.full((2**20,), float(i), dtype=torch.float64)}, {}))
folder = checkpoints.Checkpoints(Path(sys.argv[1]))

def write():
    tree = {"snapshots": (state.state_dict() for state in snapshots.states())}
    folder.write(1, 0, tree, {"threads": 1}, is_best=False)

def read():
    total = sum(float(kept["params"][""][0]) for kept in folder.newest().tree["snapshots"])
    assert total == 24 * 23 / 2

for work in (write, read):
    print(taken_by(work, torch.device("cpu")) / checkpoints.PART_BYTES)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel keeps no peak that can be reset")
def test_neither_written_nor_read_are_many_states_in_the_memory_at_once(tmp_path: Path) -> None:
    """In a process of its own, whose C library gives back what is freed: the peak is of what is held."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_STATES, str(tmp_path)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    written, read = (float(line) for line in done.stdout.split())
    assert written < 3
    assert read < 3


def test_a_damaged_part_is_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperopt_cli.run_directory.checkpoints.PART_BYTES", 100)
    checkpoints = Checkpoints(tmp_path)
    for n in (1, 2):
        checkpoints.write(n, 0, {"n": n, "many": items(3, 80)}, DEPENDS, is_best=False)
    flipped(tmp_path / "outer-000002" / "part-000001.pt", random.Random(0))
    found = checkpoints.newest()
    assert found is not None
    assert found.passed_over[0].startswith("outer-000002: part-000001.pt has the SHA-256")
    assert found.tree["n"] == 1
    (tmp_path / "outer-000001/part-000000.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="outer-000001 was changed while it was read"):
        list(found.tree["many"])


def test_a_part_elsewhere_is_not_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    name = checkpoints.write(1, 0, {"many": {"parts of a list": ["../outside.pt"]}}, DEPENDS, is_best=False)
    torch.save([1], tmp_path / "outside.pt")
    with pytest.raises(CheckpointError, match="lacks a part of it"):
        checkpoints.newest()
    manifest = tmp_path / name / MANIFEST
    content = json.loads(manifest.read_text())
    content["files"]["../outside.pt"] = content["files"][STATE]
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is not a checkpoint's"):
        checkpoints.newest()


@pytest.mark.parametrize("limit", [1_000, 20_000, 100_000, 399_000])
def test_where_there_is_really_no_room_it_says_so_and_the_last_one_is_intact(tmp_path: Path, limit: int) -> None:
    """The kernel refuses to make a file larger, as a full disk does; torch has an error of its own for that."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(0, 1, {"x": torch.zeros(10)}, {}, is_best=False)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            checkpoints.write(0, 2, {"x": torch.zeros(100_000)}, {}, is_best=False)
        except StorageError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found = checkpoints.newest()
    assert found is not None
    assert found.name == "outer-000000-00000001"
