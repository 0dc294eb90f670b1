"""`hyperopt run --nproc 2` and `torchrun`, from end to end: results, signals, lost ranks, errors."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperopt_cli.run_directory.reading import read
from tests.forked import forked

pytestmark = pytest.mark.slow

# A network that takes its time where there is a file `slow`; each process notes that it has begun to train.
MODULE = """
import os
import time
from pathlib import Path

import torch


class Net(torch.nn.Linear):
    def forward(self, x):
        if Path('slow').exists():
            Path('pid-' + os.environ.get('RANK', '0')).write_text(str(os.getpid()))
            time.sleep(0.03)
        return super().forward(x.flatten(1))


def net(num_classes):
    return Net(64, num_classes)
"""
RECIPE = """
model: {call: nets.net}
dataset: {call: digits, batch_size: 32}
optimizer: {name: sgd}
steps: 40
hyperparameters:
  lr: {initial: 0.1, transform: log}
  momentum: {initial: 0.9, transform: logit}
  weight_decay: {initial: 1.0e-3, transform: log}
outer: {optimizer: adam, lr: 0.05, steps: 2}
mode: {name: forward, engine: forward_over_reverse, columns_at_once: 1, compile: false}
"""
RUN = ("run", "recipe.yaml", "--allow-import", "nets")
ANEW = (sys.executable, "-m", "hyperopt_cli")
TWO = ("--nproc", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write_files(folder: Path) -> None:
    (folder / "nets.py").write_text(MODULE)
    (folder / "recipe.yaml").write_text(RECIPE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The figures of one process that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert ended("--out", "whole").returncode == 0
        return figures("whole")


def started(*arguments: str, command: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """The launcher and its ranks, forked from this process or, with a `command`, each started anew."""
    if not command:
        return forked(*RUN, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([*command, *RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(*arguments: str, command: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    process = started(*arguments, command=command)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stopped(
    act: Callable[["subprocess.Popen[str]"], None], *arguments: str, command: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    """A slow run of two ranks to which something happens in the middle of its second inner run."""
    Path("slow").touch()
    process = started(*arguments, *TWO, "checkpoint_every_s=0.2", command=command)
    wait_until(lambda: figures("there") != [] and 0 < middle() <= 20, process)
    act(process)
    out, err = process.communicate(timeout=120)
    Path("slow").unlink()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def middle() -> int:
    """The inner step of the newest checkpoint; 0 between two inner runs."""
    latest = Path("there/checkpoints/LATEST")
    parts = latest.read_text().strip().split("-") if latest.exists() else []
    return int(parts[2]) if len(parts) == 3 else 0


def figures(directory: str) -> list[dict[str, Any]]:
    path = Path(directory) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: x for key, x in line.items() if key not in ("wall_s", "peak_bytes")} for line in lines]


def test_two_processes_give_the_bits_of_one_and_say_everything_once() -> None:
    for num in ("1", "2"):
        done = ended("--nproc", num, "--out", num, "--json", command=ANEW)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line.get("outer_step") for line in lines] == [0, 1, 2, None]
        assert lines[-1]["directory"] == num
    assert figures("1") == figures("2")
    assert len(figures("1")) == 3
    assert read(Path("2")).state == "done"


@pytest.mark.parametrize(("num", "command"), [("1", ANEW), ("3", ())])
def test_a_signal_to_the_launcher_keeps_the_middle_of_a_run_which_any_number_of_processes_continues(
    num: str, command: tuple[str, ...], undisturbed: list[dict[str, Any]]
) -> None:
    end = stopped(lambda process: process.send_signal(signal.SIGTERM), "--out", "there", command=command)
    assert end.returncode == 75
    assert end.stderr.count("stopped by SIGTERM; a checkpoint is kept in there: continue with: ") == 1
    assert end.stderr.rstrip().endswith(" run --resume there --nproc 2 --allow-import nets")
    assert len(end.stderr.splitlines()) == 1
    assert 0 < middle() < 40
    assert read(Path("there")).state == "interrupted"
    again = ended("--resume", "there", "--nproc", num)
    assert again.returncode == 0
    assert "continued from outer-00000" in again.stdout
    assert figures("there") == undisturbed


def test_a_rank_that_is_killed_ends_the_others_and_the_run_can_be_continued(
    undisturbed: list[dict[str, Any]],
) -> None:
    end = stopped(lambda _: os.kill(int(Path("pid-1").read_text()), signal.SIGKILL), "--out", "there")
    assert end.returncode == 75
    assert "rank 0 of 2: another rank of this run is gone" in end.stderr
    assert "rank 1 of 2 was ended by SIGKILL" in end.stderr
    assert "with any number of ranks, a checkpoint is kept in there: continue with: " in end.stderr
    assert " run --resume there --nproc 2 --allow-import nets\n" in end.stderr
    assert "Traceback" not in end.stderr
    assert "terminate called" not in end.stderr
    assert read(Path("there")).state == "interrupted"
    assert ended("--resume", "there", *TWO).returncode == 0
    assert figures("there") == undisturbed


def test_where_the_lead_is_killed_the_others_say_so() -> None:
    end = stopped(lambda _: os.kill(int(Path("pid-0").read_text()), signal.SIGKILL), "--out", "there")
    assert end.returncode == 75
    assert "rank 1 of 2: another rank of this run is gone" in end.stderr
    assert "rank 0 of 2 was ended by SIGKILL" in end.stderr
    assert ended("--resume", "there", *TWO).returncode == 0
    assert read(Path("there")).state == "done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stesp=3"], "did you mean steps"),
        (["--nproc", "0"], "--nproc: got 0; must be at least 1"),
        (["shard=replicas"], "replicas: 2 ranks for 1"),
        (["--out", "."], "holds a run or other files already"),
        (["dataset.batch_size=100000"], "100000"),
        (["--nproc", "4"], "4 ranks for 3 columns in 3 blocks"),
    ],
)
def test_what_cannot_run_is_said_once(arguments: list[str], message: str) -> None:
    end = ended(*(() if "--nproc" in arguments else TWO), *arguments)
    assert end.returncode == 2
    assert end.stderr.count("hyperopt: ") == 1
    assert message in end.stderr
    assert "Traceback" not in end.stderr


def test_torchrun_starts_ranks_too(undisturbed: list[dict[str, Any]]) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python")
    done = ended("--out", "two", "--json", command=(*torchrun, *ANEW))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert figures("two") == undisturbed
