"""`hyperopt run --resume`: what is continued, what is refused, and how a signal ends a run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.opening import locked
from hyperopt_cli.run_directory.reading import read
from tests.cli.test_bad_input import GOOD
from tests.forked import forked

HYPEROPT = [sys.executable, "-c", "from hyperopt_cli.cli import main; main()"]
SHORT = ("steps=20", "outer.steps=2")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


def figures(directory: str | Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key not in ("wall_s", "peak_bytes")} for line in lines]


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGUSR2", 75), ("SIGINT", 130)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_it_can_be_continued(
    number: str, code: int, tmp_path: Path, recipe: Path, hyperopt: Any
) -> None:
    arguments = ["run", str(recipe), "steps=50", "outer.steps=40", "checkpoint_every_s=1e6", "--out", "there"]
    pipes: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if number == "SIGTERM":  # one is started anew; the others are forked from this process
        process = subprocess.Popen([*HYPEROPT, *arguments], text=True, **pipes)
    else:
        process = forked(*arguments, **pipes)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "there/metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"stopped by {number}" in err
    assert "--resume there" in err
    assert "Traceback" not in err
    assert read(tmp_path / "there").state == "interrupted"
    measured = len(figures(tmp_path / "there"))
    assert 0 < measured < 41
    # two outer steps more than are done, which may change, and are enough to see that it goes on
    changed = [f"outer.steps={measured + 1}" if x.startswith("outer.steps") else x for x in arguments]
    assert hyperopt(*changed, "--resume", "auto").code == 0
    assert read(tmp_path / "there").state == "done"
    assert hyperopt(*changed[:-1], "whole").code == 0
    assert figures("there") == figures("whole")


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path, recipe: Path) -> None:
    """The first step takes for ever."""
    (tmp_path / "slow.py").write_text(
        "import time, torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        print('here', flush=True)\n"
        "        time.sleep(60 * self.begun())\n"
        "        return super().forward(x.flatten(1))\n"
        "    def begun(self):\n"
        "        import pathlib\n"
        "        return pathlib.Path('there/status.json').exists()\n"
        "def net(num_classes): return Net(64, num_classes)\n"
    )
    command = ["run", str(recipe), "model={call: slow.net}", "--allow-import", "slow", "--out", "there"]
    process = forked(*command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    while not (tmp_path / "there/status.json").exists() or "here" not in process.stdout.readline():
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 30
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_while_the_data_are_read_ends_it_soon(number: str, code: int, tmp_path: Path, recipe: Path) -> None:
    """Reading all of them would take minutes."""
    (tmp_path / "slow.py").write_text(
        "import time, torch\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    targets = [0, 1] * 50_000\n"
        "    def __len__(self): return 100_000\n"
        "    def __getitem__(self, i):\n"
        "        if i == 10: print('here', flush=True)\n"
        "        time.sleep(0.001)\n"
        "        return torch.zeros(4), i % 2\n"
        "def data(): return Data()\n"
    )
    command = ["run", str(recipe), "dataset={call: slow.data}", "--allow-import", "slow", "--out", "there"]
    process = forked(*command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert "here" in process.stdout.readline()
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"stopped by {number}; nothing was measured: run it again: hyperopt run " in err
    assert "Traceback" not in err
    assert not (tmp_path / "there").exists()


def test_auto_starts_what_is_not_there_and_leaves_alone_what_is_done(hyperopt: Any, recipe: Path) -> None:
    first = hyperopt("run", recipe, *SHORT, "--out", "there", "--resume", "auto")
    assert first.code == 0
    before = figures("there")
    again = hyperopt("run", recipe, *SHORT, "--out", "there", "--resume", "auto")
    assert again.code == 0
    assert "continued from outer-000003" in again.out
    assert figures("there") == before


def test_auto_without_out_finds_the_newest_that_is_not_done(hyperopt: Any, recipe: Path, tmp_path: Path) -> None:
    assert hyperopt("run", recipe, *SHORT).code == 0
    (done,) = (tmp_path / "runs").iterdir()
    assert hyperopt("run", recipe, *SHORT, "--resume", "auto").code == 0
    (begun,) = set((tmp_path / "runs").iterdir()) - {done}
    status = json.loads((begun / "status.json").read_text())
    (begun / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    assert f"in {begun.relative_to(tmp_path)}" in hyperopt("run", recipe, *SHORT, "--resume", "auto").out
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_run_of_another_recipe_is_not_continued_and_the_difference_shown(hyperopt: Any, recipe: Path) -> None:
    assert hyperopt("run", recipe, *SHORT, "--out", "there").code == 0
    before = {path: path.read_bytes() for path in Path("there").rglob("*") if path.is_file()}
    code, _, err = hyperopt("run", recipe, "steps=21", "outer.steps=2", "--resume", "there")
    assert code == 2
    assert "-steps: 20" in err
    assert "+steps: 21" in err
    assert "only outer.steps, outer.budget, outer.trials, checkpoint_every_s and shard may change" in err
    assert {path: path.read_bytes() for path in Path("there").rglob("*") if path.is_file()} == before


def test_outer_steps_and_the_interval_may_change(hyperopt: Any, recipe: Path) -> None:
    assert hyperopt("run", recipe, "steps=20", "outer.steps=1", "--out", "there").code == 0
    changed = ("steps=20", "outer.steps=2", "checkpoint_every_s=7")
    assert hyperopt("run", recipe, *changed, "--resume", "there").code == 0
    assert hyperopt("run", recipe, *SHORT, "--out", "whole").code == 0
    assert figures("there") == figures("whole")
    assert "checkpoint_every_s: 7" in Path("there/resolved.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume", "nowhere"), "nowhere is not a directory"),
        (("--resume", "nowhere"), "allowed are never, auto and the directory of a run\n"),
        (
            ("--resume", "atuo"),
            "atuo is not a directory; allowed are never, auto and the directory of a run; did you m",
        ),
        (("--resume", "atuo", "--out", "there"), "did you mean auto?"),
        (("--resume", "Auto"), "did you mean auto?"),
        (("--resume", "nevr"), "did you mean never?"),
        (("--resume", "nowhere", "--out", "there"), "give one of them"),
        (("--resume", "auto", "--out", "full"), "has no status.json"),
        (("--out", "full"), "holds a run or other files already"),
    ],
)
def test_what_cannot_be_continued_is_said(arguments: tuple[str, ...], said: str, hyperopt: Any, recipe: Path) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    code, _, err = hyperopt("run", recipe, *SHORT, *arguments)
    assert code == 2
    assert said in err
    assert [path.name for path in Path("full").iterdir()] == ["notes.txt"]


def test_a_run_killed_before_it_had_a_status_is_started_again(hyperopt: Any, recipe: Path) -> None:
    Path("there/tensorboard").mkdir(parents=True)
    code, out, _ = hyperopt("run", recipe, *SHORT, "--out", "there", "--resume", "auto")
    assert code == 0
    assert "started again" in out


def test_a_second_process_is_refused(hyperopt: Any, recipe: Path) -> None:
    assert hyperopt("run", recipe, *SHORT, "--out", "there").code == 0
    with locked(RunDirectory(Path("there"))):
        code, _, err = hyperopt("run", recipe, *SHORT, "--resume", "there")
    assert code == 2
    assert "process" in err
    assert "is at work there" in err
    assert hyperopt("run", recipe, *SHORT, "--resume", "there").code == 0
