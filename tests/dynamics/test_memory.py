"""Bytes of a state, and bytes that are free: meminfo, control groups of both versions, and what a function takes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli import Reverse, hypergradient, memory
from hyperopt_cli.dynamics.dynamics import Dynamics, State
from hyperopt_cli.modes import Measurements, reverse
from hyperopt_cli.optimizers import Adam
from tests.cases import CASES, net_problem, scalar

GIB = 2**30
CPU = torch.device("cpu")


def files(root: Path, **contents: str) -> Path:
    for name, text in contents.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def proc(root: Path, cgroup: str | None, available_kib: int = 8 * 2**20) -> Path:
    files(root, meminfo=f"MemTotal: 99 kB\nMemAvailable:   {available_kib} kB\n")
    return root if cgroup is None else files(root, self__cgroup=cgroup)


def v2(root: Path, limit: str, used: int, idle: int = 0) -> None:
    files(root, memory_DOT_max=limit, memory_DOT_current=str(used), memory_DOT_stat=f"anon 5\ninactive_file {idle}\n")


def v1(root: Path, limit: int, used: int, idle: int = 0) -> None:
    names = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used}
    root.mkdir(parents=True, exist_ok=True)
    for name, value in names.items():
        (root / name).write_text(f"{value}\n", encoding="utf-8")
    (root / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {idle}\n", encoding="utf-8")


def test_the_bytes_of_a_state_are_those_of_all_its_tensors() -> None:
    state = State(
        {"a": torch.zeros(3, 4)}, {"m": {"a": torch.zeros(5, dtype=torch.float64)}, "n": {"a": torch.zeros(())}}
    )
    assert memory.state_bytes(state) == 12 * 4 + 5 * 8 + 4


def test_without_control_groups_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert memory.host_bytes(proc(tmp_path / "proc", None), tmp_path / "none") == 8 * GIB


def test_a_group_of_version_2_limits_and_so_does_the_one_above(tmp_path: Path) -> None:
    root = proc(tmp_path / "proc", "0::/job/step\n")
    groups = tmp_path / "groups"
    v2(groups / "job/step", "max\n", 1)
    v2(groups / "job", str(5 * GIB), 3 * GIB, GIB)
    assert memory.host_bytes(root, groups) == 3 * GIB


def test_a_group_of_version_1_limits(tmp_path: Path) -> None:
    root = proc(tmp_path / "proc", "5:cpu:/job\n4:memory,hugetlb:/job\n0::/\n")
    groups = tmp_path / "groups"
    v1(groups / "memory/job", 4 * GIB, 2 * GIB, GIB)
    v1(groups / "memory", 2**63 - 4096, 2 * GIB)
    assert memory.host_bytes(root, groups) == 3 * GIB


def test_a_container_that_sees_its_own_group_as_the_root_is_limited(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    v1(groups / "memory", 2 * GIB, GIB)
    assert memory.host_bytes(proc(tmp_path / "proc", "4:memory:/docker/abc\n"), groups) == GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    v2(groups, str(GIB), 2 * GIB)
    assert memory.host_bytes(proc(tmp_path / "proc", "0::/\n"), groups) == 0


def test_without_meminfo_the_system_is_asked(tmp_path: Path) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.host_bytes(tmp_path, tmp_path) <= there


def test_this_machine_has_some() -> None:
    assert 2**20 < memory.available_bytes(CPU) < 2**60


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak can't be reset")
def test_what_a_function_takes_is_measured() -> None:
    held = torch.ones(2**24, dtype=torch.uint8)  # below what glibc maps by itself: freed, it stays with the process
    del held
    taken = memory.taken_by(lambda: torch.ones(2**26, dtype=torch.uint8), CPU)
    assert 0.9 * 2**26 < taken < 1.5 * 2**26


@pytest.mark.parametrize(("room", "slots"), [(0.0, 1), (3.5, 3), (7.0, 7), (1e6, 12)])
def test_auto_takes_as_many_slots_as_fit(monkeypatch: pytest.MonkeyPatch, room: float, slots: int) -> None:
    problem, hyper = net_problem(Adam(eps=1e-3)), {"lr": scalar(0.05)}
    state = memory.state_bytes(Dynamics.of(problem, hyper).start)
    step = 100 * state
    free = (room * state + 1.2 * step) / 0.9 + 1
    monkeypatch.setattr(reverse, "taken_by", lambda function, device: (function(), step)[1])
    monkeypatch.setattr(reverse, "available_bytes", lambda device: free)
    got = hypergradient(problem, hyper, Reverse(slots="auto"))
    want: Any = hypergradient(problem, hyper, "reverse")
    assert got.stats["slots"] == slots
    assert got.stats["num_gradients"] == got.stats["num_steps"] + 12  # what was tried before the run is not counted
    assert torch.equal(got.grad["lr"], want.grad["lr"])


def test_slots_that_fit_are_measured_once_and_taken_over_by_a_run_that_goes_on(monkeypatch):
    _, problem, hyper = CASES["momentum"]
    fitting = iter([3, 5])
    monkeypatch.setattr("hyperopt_cli.modes.reverse.measured_slots", lambda *given: next(fitting))
    mode, known, other = Reverse(slots="auto"), Measurements(), Measurements()
    assert [hypergradient(problem, hyper, mode, measurements=known).stats["slots"] for _ in range(2)] == [3, 3]
    other.load_state_dict(known.state_dict())
    assert hypergradient(problem, hyper, mode, measurements=other).stats["slots"] == 3
    assert hypergradient(problem, hyper, mode).stats["slots"] == 5


@pytest.mark.parametrize(
    ("free", "fraction", "available"),
    [(70, 1.0, 75), (70, 0.5, 25), (10, 0.5, 15), (70, 0.25, 5), (0, 1.0, 5), (70, 0.3, 5)],
)
def test_of_a_cuda_device_the_share_of_the_process_is_there(
    monkeypatch: pytest.MonkeyPatch, free: int, fraction: float, available: int
) -> None:
    """Of 100 bytes torch has 30, of which 25 are in use."""
    given = {
        "mem_get_info": (free, 100),
        "memory_reserved": 30,
        "memory_allocated": 25,
    }
    for name, value in given.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", {0: fraction, 1: 0.0}.__getitem__)
    assert memory.available_bytes(torch.device("cuda")) == available
    assert memory.available_bytes(torch.device("cuda:1")) == 5
