"""Slots on the device, the host and the disk: the order of the snapshots, bits and strides, failures that are told."""

import resource
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Problem, Reverse, hypergradient
from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.errors import HyperoptError
from hyperopt_cli.modes.adjoint.disk_snapshots import DiskSnapshots, NoLift
from hyperopt_cli.modes.adjoint.places import Places, SnapshotStack
from hyperopt_cli.modes.adjoint.rows import RowLayout, Rows
from hyperopt_cli.modes.adjoint.snapshots import HeldSnapshots
from hyperopt_cli.optimizers import SGD

CPU = torch.device("cpu")


def tensors(seed: int) -> dict[str, Tensor]:
    """Of every kind that a state may hold."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(2, 3, 4, 5, generator=generator)
    return {
        "plain": torch.randn(7, generator=generator, dtype=torch.float64),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.empty(0, 3),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "transposed": torch.randn(3, 4, generator=generator).t(),
        "channels last": picture.to(memory_format=torch.channels_last),
        "part": torch.randn(9, generator=generator)[3:8],
        "every other": torch.randn(8, generator=generator)[::2],
        "expanded": torch.randn(1, generator=generator).expand(6),
        "special": torch.tensor([float("nan"), float("-inf"), -0.0, 5e-324], dtype=torch.float64),
    }


def state(seed: int) -> State:
    return State(tensors(seed), {"momentum": tensors(seed + 1)})


def raw(x: Tensor) -> list[int]:
    """The bits: NaN is equal to itself, 0 is not -0."""
    return x.contiguous().view(-1).view(torch.uint8).tolist() if x.numel() else []


def assert_same(got: State, want: State) -> None:
    for a, b in ((got.params, want.params), (got.slots["momentum"], want.slots["momentum"])):
        assert list(a) == list(b)
        for name, x in b.items():
            assert (a[name].shape, a[name].dtype, a[name].device) == (x.shape, x.dtype, x.device)
            assert raw(a[name].cpu()) == raw(x.cpu())


@contextmanager
def disk(num_slots: int = 9) -> Iterator[DiskSnapshots]:
    snapshots = DiskSnapshots(num_slots, NoLift())
    try:
        yield snapshots
    finally:
        snapshots.close()


def test_a_row_of_bytes_gives_bits_and_strides_back() -> None:
    given = state(0)
    record = RowLayout(given)
    row = torch.zeros(record.num_bytes, dtype=torch.uint8)
    for begin, chunk in record.chunks(given):
        row[begin : begin + len(chunk)] = torch.frombuffer(chunk, dtype=torch.uint8) if len(chunk) else row[:0]
    got = record.views(row)
    assert_same(got, given)
    for name in ("plain", "transposed", "channels last"):
        assert got.params[name].stride() == given.params[name].stride()
    assert all(x.data_ptr() % 64 == row.data_ptr() % 64 for x in got.params.values() if x.numel())


@pytest.mark.parametrize("ahead", [False, True])
def test_the_disk_is_a_stack_that_gives_every_bit_back(ahead: bool) -> None:
    with disk() as snapshots:
        for seed in range(4):
            snapshots.push(state(seed))
        assert len(snapshots) == 4
        for seed in (3, 2):
            for last in (False, True):
                if ahead:
                    snapshots.ahead()
                assert_same(snapshots.top(), state(seed))
                if last:
                    snapshots.drop()
        snapshots.push(state(9))  # over the place of what is gone
        assert_same(snapshots.top(), state(9))
        snapshots.drop()
        assert_same(snapshots.top(), state(1))


def test_a_read_ahead_that_is_overtaken_by_a_push_is_forgotten() -> None:
    with disk() as snapshots:
        snapshots.push(state(0))
        snapshots.ahead()
        snapshots.push(state(1))
        assert_same(snapshots.top(), state(1))
        snapshots.drop()
        assert_same(snapshots.top(), state(0))


def test_the_file_is_as_long_as_the_slots_that_were_in_use_at_once() -> None:
    with disk() as snapshots:
        for seed in range(30):
            snapshots.push(state(seed))
            snapshots.push(state(seed))
            snapshots.drop()
            snapshots.drop()
        snapshots.push(state(0))
        snapshots.top()
        assert snapshots._file.seek(0, 2) <= 2 * (RowLayout(state(0)).num_bytes + 4096)


def test_the_farthest_shelf_is_filled_first_and_read_last() -> None:
    far, middle, near = HeldSnapshots(), HeldSnapshots(), HeldSnapshots()
    snapshots = SnapshotStack([(1, far), (2, middle), (1, near)])
    for seed in range(4):
        snapshots.push(state(seed))
    assert [len(snapshots) for snapshots in (far, middle, near)] == [1, 2, 1]
    for seed in (3, 2, 1, 0):
        assert_same(snapshots.top(), state(seed))
        snapshots.drop()
    assert len(snapshots) == 0
    snapshots.ahead()


@pytest.mark.parametrize(
    ("given", "slots", "want"),
    [
        (Places(20, 200, 7), 300, (20, 200, 7)),
        (Places(20, 200, 7), 100, (20, 80, 0)),
        (Places(20, 200, 7), 223, (20, 200, 3)),
        (Places(0, 0, 7), 3, (0, 0, 3)),
        (Places(20, 1, 1), 5, (5, 0, 0)),
    ],
)
def test_slots_that_a_short_run_needs_not_are_the_far_ones(given: Places, slots: int, want: tuple[int, ...]) -> None:
    assert tuple(given.at_most(slots)) == want


def test_on_the_cpu_the_host_and_the_device_are_one_standing_memory() -> None:
    with SnapshotStack.on(Places(device=20, host=30), CPU) as snapshots:
        addresses = set()
        for seed in range(50):
            snapshots.push(state(seed))
            addresses.add(snapshots.top().params["plain"].data_ptr())
        for seed in reversed(range(50)):
            assert_same(snapshots.top(), state(seed))
            snapshots.drop()
        snapshots.push(state(7))
        assert_same(snapshots.top(), state(7))
        assert snapshots.top().params["plain"].data_ptr() in addresses
        assert len(addresses) == 50


@pytest.mark.parametrize("num_rows", [1, 8, 9, 1000])
def test_rows_do_not_overlap(num_rows: int) -> None:
    rows = Rows(num_rows)
    views = [rows.row(i, 2**20 + 3) for i in range(min(num_rows, 70))]  # a slab holds 63 of them
    begins = sorted((view.data_ptr(), view.numel()) for view in views)
    assert all(a + size <= b for (a, size), (b, _) in pairwise(begins))
    assert all(view.numel() >= 2**20 + 3 and view.data_ptr() % 64 == 0 for view in views)
    assert rows.row(0, 2**20 + 3).data_ptr() == views[0].data_ptr()


def problem(size: int = 1000, steps: int = 12, outer: Any = None) -> Problem:
    def value(params: dict[str, Tensor], *rest: Any) -> Tensor:
        return (params["w"] ** 2).sum() / 2

    start = {"w": torch.linspace(-1, 1, size, dtype=torch.float64)}
    return Problem(start, value, outer or value, lambda t: None, SGD(), steps)


RATE = {"lr": torch.tensor(0.1, dtype=torch.float64), "momentum": torch.tensor(0.9, dtype=torch.float64)}


def disk_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hyperopt-disk")]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[int] = []

    def outer(params: dict[str, Tensor], hyper: Any) -> Tensor:
        seen.append(len(disk_threads()))
        if fails and seen[-1]:
            raise KeyError("the user's own mistake")
        return params["w"].sum()

    if fails:
        with pytest.raises(KeyError):
            hypergradient(problem(outer=outer), RATE, Reverse(slots={"disk": 3}))
    else:
        hypergradient(problem(outer=outer), RATE, Reverse(slots={"disk": 3}))
    assert max(seen) == 1  # it was at work
    assert disk_threads() == []
    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """What a full disk does, done by the kernel: a write beyond the limit fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 5000, 20000])
def test_a_disk_without_room_is_told_with_the_size_of_a_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = f"the file of the 4 disk slots in {tmp_path} can't be written .*; a slot takes 16,384 bytes. Set TMPDIR to"
    with no_file_above(room), pytest.raises(HyperoptError, match=said):
        hypergradient(problem(), RATE, Reverse(slots={"disk": 4}))
    assert disk_threads() == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(HyperoptError, match=r"missing can't be opened \(No such file or directory\)\. Set TMPDIR"):
        hypergradient(problem(), RATE, Reverse(slots={"disk": 2}))


def test_a_file_that_was_cut_off_is_told() -> None:
    with disk() as snapshots:
        snapshots.push(state(0))
        snapshots.push(state(1))
        assert_same(snapshots.top(), state(1))
        snapshots._file.truncate(100)
        with pytest.raises(HyperoptError, match="can't be read"):
            snapshots.top()


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_hypergradient_from_the_disk_has_the_same_bits(given: int) -> None:
    slots: Any = [{"disk": 5}, {"device": 1, "host": 1, "disk": 1}, {"host": 2, "disk": 9}][given]
    got, want = (hypergradient(problem(steps=30), RATE, mode) for mode in (Reverse(slots=slots), Reverse()))
    assert all(torch.equal(got.grad[name], want.grad[name]) for name in RATE)
