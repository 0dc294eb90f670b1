"""The list of runs: each in its state, the newest first, and none that is damaged stops it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.overview import RunRow, runs_below, to_continue
from hyperopt_cli.run_directory.status import LiveStatus
from tests.run_directory.example import result, step


def made(folder: Path, state: str | None, hour: int, num: int = 3, **fields: Any) -> RunDirectory:
    """A run that has measured `num` outer steps; no state: it goes on."""
    directory = RunDirectory.create(folder, "digits")
    status = LiveStatus(directory.status, mode="reverse", outer_step=num - 1)
    for n in range(num):
        directory.append_metrics(step(n))
    if state == "done":
        directory.write_result(result())
    if state == "killed":
        fields["pid_started_ticks"] = 1
    elif state is not None:
        status.finish(state, **fields)  # type: ignore[arg-type]
    content = json.loads(directory.status.read_text())
    fields = {"started": f"2026-01-01T{hour:02}:00:00+00:00", **fields}
    directory.status.write_text(json.dumps({**content, **fields}))
    return directory


STATES = ("running", "done", "diverged", "interrupted", "failed", "killed")


def by_name(folder: Path) -> dict[str, RunRow]:
    return {row.name: row for row in runs_below(folder)}


def test_every_run_is_listed_in_its_state_the_newest_first(tmp_path: Path) -> None:
    for hour, state in enumerate(STATES):
        made(tmp_path / state, None if state == "running" else state, hour, reason=f"of {state}")
    rows = runs_below(tmp_path)
    assert [row.name for row in rows] == [row.state for row in rows] == list(reversed(STATES))
    for row in rows:
        assert (row.mode, row.outer_step, row.best) == ("reverse", 2, step(2).validation_loss)
        assert row.directory == str(tmp_path / row.name)
        assert row.age_s is not None
        assert row.age_s > 0
    walls = {row.name: row.wall_s for row in rows}
    assert walls["done"] == result().wall_s
    assert walls["killed"] == sum(step(n).stats["wall_s"] for n in range(3))
    assert by_name(tmp_path)["diverged"].reason == "of diverged"


def test_what_auto_chose_is_named(tmp_path: Path) -> None:
    directory = made(tmp_path / "run", None, 0, num=1)
    directory.append_metrics(step(1)._replace(stats={**step(1).stats, "mode": "reverse:slots=4"}))
    assert by_name(tmp_path)["run"].mode == "reverse:slots=4"


def test_runs_of_a_job_are_listed_with_it_and_a_run_by_itself(tmp_path: Path) -> None:
    made(tmp_path / "job" / "seed=0", "done", 0)
    assert list(by_name(tmp_path)) == ["job/seed=0"]
    assert list(by_name(tmp_path / "job" / "seed=0")) == ["seed=0"]


def test_what_is_no_run_is_passed_over(tmp_path: Path) -> None:
    made(tmp_path / "run", "done", 0)
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "text.json").touch()
    (tmp_path / "status.txt").touch()
    assert list(by_name(tmp_path)) == ["run"]
    assert runs_below(tmp_path / "nowhere") == []


DAMAGES: dict[str, tuple[str, bytes, str]] = {
    "half a status": ("status.json", b'{"state": "run', "is not JSON"),
    "a status of another kind": ("status.json", b"[]", "not an object"),
    "a status without a host": ("status.json", b'{"state": "running"}', "lacks heartbeat"),
    "a status that is no text": ("status.json", b"\xff\xfe\x00", "status.json"),
    "a damaged line": ("metrics.jsonl", b'{"outer_step": 1}\n', "metrics.jsonl:1 is damaged"),
    "lines that are no text": ("metrics.jsonl", b"\xff\xfe\n", "UnicodeDecodeError"),
    "half a result": ("result.json", b"{", "result.json is not JSON"),
    "another result": ("result.json", b"{}", "another version"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_run_is_listed_as_such_beside_the_others(case: str, tmp_path: Path) -> None:
    name, content, said = DAMAGES[case]
    made(tmp_path / "good", "done", 0)
    (made(tmp_path / "bad", "interrupted", 1).root / name).write_bytes(content)
    rows = by_name(tmp_path)
    assert (rows["good"].state, rows["bad"].state) == ("done", "damaged")
    assert said in (rows["bad"].reason or "")


@pytest.mark.parametrize("field", ["pid", "heartbeat", "started"])
def test_nonsense_in_a_status_stops_nothing(field: str, tmp_path: Path) -> None:
    directory = made(tmp_path / "bad", None, 0, **({"host": "elsewhere"} if field == "heartbeat" else {}))
    status = json.loads(directory.status.read_text())
    for nonsense in (None, "x", [1], {}):
        directory.status.write_text(json.dumps({**status, field: nonsense}))
        (row,) = runs_below(tmp_path)
        assert row.state in ("damaged", "killed")


def test_without_a_status_it_is_damaged(tmp_path: Path) -> None:
    made(tmp_path / "run", "done", 0).status.unlink()
    (tmp_path / "run" / "resolved.yaml").touch()
    (row,) = runs_below(tmp_path)
    assert (row.state, "has no status.json" in str(row.reason)) == ("damaged", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    made(tmp_path / "good", "done", 0)
    (tmp_path / "closed").mkdir(mode=0)
    assert list(by_name(tmp_path)) == ["good"]


def test_the_newest_that_was_ended_is_to_be_continued(tmp_path: Path) -> None:
    for hour, state in enumerate(("killed", "interrupted", "done", "running")):
        made(tmp_path / state, None if state == "running" else state, hour)
    made(tmp_path / "refused", "failed", 9, num=0)
    row = to_continue(runs_below(tmp_path))
    assert row is not None
    assert row.name == "interrupted"
    assert to_continue([row._replace(state="done")]) is None
