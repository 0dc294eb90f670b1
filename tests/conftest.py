"""The command line called in this process, as a shell would call it; and what `-m gpu` collects."""

import fcntl
import gc
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

GPU = Path(__file__).parent / "gpu"
LOCKS, FROZEN = pytest.StashKey(), pytest.StashKey()

MANY_MODULES = 100

# The networks of the tests are small: a second thread brings nothing, and costs much beside other processes. Programs
# that a test starts have one as well; what needs more says so itself.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_ignore_collect(collection_path, config):
    """`-m gpu` imports its own folder alone: a machine with a GPU may have torch and pytest, and nothing else."""
    on_the_way = collection_path.is_relative_to(GPU) or GPU.is_relative_to(collection_path)
    return True if config.getoption("markexpr") == "gpu" and not on_the_way else None


def pytest_configure(config):
    """Where tests run in several processes, these share two files to lock."""
    if hasattr(config, "workerinput"):
        shared = Path(config.option.basetemp).parent
        config.stash[LOCKS] = [(shared / name).open("a") for name in ("following", "running")]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before a file's tests begin, what modules hold is set apart from what is looked through for garbage.

    A million objects that live to the end take as long to look through as many tests take, and whoever measures memory
    has them looked through several times. Files import more, and benchmarks (`bench/measuring.py`) put all of it back.
    """
    path, modules = item.config.stash.get(FROZEN, (None, 0))
    if path == item.path:
        return
    if len(sys.modules) > modules + MANY_MODULES or gc.get_freeze_count() == 0:
        gc.collect()
        gc.freeze()
        modules = len(sys.modules)
    item.config.stash[FROZEN] = (item.path, modules)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    gc.unfreeze()  # what is imported for the summary asks the collector who refers to what


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Beside a test that is marked `alone` no other process of this run is in a test.

    All others share one lock, which it has to itself; whoever waits for it holds another, that none begins meanwhile.
    """
    if LOCKS not in item.config.stash:
        return (yield)
    following, running = item.config.stash[LOCKS]
    fcntl.flock(following, fcntl.LOCK_EX)
    fcntl.flock(running, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
    fcntl.flock(following, fcntl.LOCK_UN)
    try:
        return (yield)
    finally:
        fcntl.flock(running, fcntl.LOCK_UN)


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
