"""What is said of the machine, and what is not."""

from pathlib import Path

import pytest
import torch

from hyperopt_cli.bench.machine import described, machine, num_cores

CPU = torch.device("cpu")


def cpuinfo(pairs: list[tuple[int, int]]) -> str:
    return "\n\n".join(f"processor\t: {i}\nphysical id\t: {p}\ncore id\t\t: {c}" for i, (p, c) in enumerate(pairs))


@pytest.mark.parametrize(
    ("pairs", "cores"),
    [([(0, 0), (0, 1)], 2), ([(0, 0), (0, 0)], 1), ([(0, 0), (0, 1), (1, 0), (1, 1)], 4)],
)
def test_two_threads_of_a_core_count_once(tmp_path: Path, pairs: list[tuple[int, int]], cores: int) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo(pairs))
    assert num_cores(path) == cores


def test_where_the_system_says_nothing_of_cores_neither_do_we(tmp_path: Path) -> None:
    assert num_cores(tmp_path / "absent") is None
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : ARM\n")
    assert num_cores(tmp_path / "cpuinfo") is None


def test_allocator_variables_are_named_and_nothing_else_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123456")
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/lib/libjemalloc.so.2:/opt/lib/other.so")
    monkeypatch.setenv("MY_TOKEN", "hidden")
    seen = machine(CPU)
    assert seen["variables"]["MALLOC_TRIM_THRESHOLD_"] == "123456"
    assert seen["variables"]["LD_PRELOAD"] == "libjemalloc.so.2:other.so"
    assert "hidden" not in str(seen)
    assert "somebody" not in str(seen)
    assert "MALLOC_TRIM_THRESHOLD_=123456" in described(seen)


def test_the_line_names_processor_cores_threads_and_torch() -> None:
    seen = machine(CPU)
    line = described(seen)
    assert seen["gpu"] is None
    for part in (seen["cpu"], f"cores: {seen['cores']}", f"threads: {torch.get_num_threads()}", torch.__version__):
        assert part in line


def test_the_line_names_the_gpu() -> None:
    line = described({**machine(CPU), "gpu": "H100", "cuda": "13.2"})
    assert "H100 (CUDA 13.2; float32 matrix products: " in line
