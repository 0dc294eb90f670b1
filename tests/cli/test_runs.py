"""`hyperopt runs`, on runs that were really made, stopped and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_bad_input import GOOD
from tests.forked import forked


@pytest.mark.slow
def test_runs_are_listed_and_a_killed_one_is_seen_as_dead(hyperopt: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(GOOD)
    assert (
        hyperopt("run", "small.yaml", "steps=20", "outer.steps=1", "--mode", "forward", "--out", "runs/first").code == 0
    )
    command = ["run", "small.yaml", "steps=50", "outer.steps=1000", "--mode", "forward", "--out", "runs/second"]
    with forked(*command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (tmp_path / "runs/second/metrics.jsonl").exists():
            time.sleep(0.05)
        going = {row["name"]: row["state"] for row in listed(hyperopt)}
        os.kill(process.pid, signal.SIGKILL)
    assert going == {"first": "done", "second": "running"}

    (tmp_path / "runs/notes").mkdir()
    rows = listed(hyperopt)
    assert [(row["name"], row["state"]) for row in rows] == [("second", "killed"), ("first", "done")]
    assert rows[1]["outer_step"] == 1
    assert (
        rows[1]["best_validation_loss"]
        == json.loads(Path("runs/first/result.json").read_text())["best"]["validation_loss"]
    )
    code, out, _ = hyperopt("runs")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["second", "forward", "killed"],
        ["first", "forward", "done"],
    ]
    assert out.rstrip().endswith("hyperopt run --resume runs/second")


def listed(hyperopt: Any) -> list[dict[str, Any]]:
    code, out, _ = hyperopt("runs", "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def test_where_there_is_none_it_says_so(hyperopt: Any, tmp_path: Path) -> None:
    assert "no run in runs" in hyperopt("runs").out
    assert hyperopt("runs", "--json").out == ""
    code, _, err = hyperopt("runs", "nowhere")
    assert code == 2
    assert "nowhere is not a directory" in err


def test_a_comparison_is_a_run_for_each_mode(hyperopt: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(GOOD)
    assert hyperopt("compare", "small.yaml", "steps=5", "--modes", "forward,reverse", "--out", "runs/both").code == 0
    rows = {row["name"]: row for row in listed(hyperopt)}
    assert set(rows) == {"both/forward", "both/reverse"}
    for name, row in rows.items():
        assert (row["mode"], row["state"], row["outer_step"]) == (name.partition("/")[2], "done", 0)
        assert row["best_validation_loss"] > 0


def test_it_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['hyperopt', 'runs']\nfrom hyperopt_cli.cli import main\nmain()"
    (tmp_path / "runs").mkdir()
    checked = code.replace("main()", "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules", 1)
    done = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
