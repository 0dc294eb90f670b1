"""The command line called in this process, as a shell would call it; and what `-m gpu` collects."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

GPU = Path(__file__).parent / "gpu"

# The networks of the tests are small: a second thread brings nothing, and costs much beside other processes. Programs
# that a test starts have one as well; what needs more says so itself.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_ignore_collect(collection_path, config):
    """`-m gpu` imports its own folder alone: a machine with a GPU may have torch and pytest, and nothing else."""
    on_the_way = collection_path.is_relative_to(GPU) or GPU.is_relative_to(collection_path)
    return True if config.getoption("markexpr") == "gpu" and not on_the_way else None


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def hyperopt(monkeypatch, capfd, tmp_path):
    """`hyperopt(*arguments)` in an empty working directory."""
    from hyperopt_cli.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["hyperopt", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        return Outcome(code, *capfd.readouterr())

    return call
