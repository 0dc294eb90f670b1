"""`hyperopt run --search`: a search by plain runs in a run directory like any other."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperopt_cli.run_directory.reading import read
from tests.instantiate.recipes import DIGITS

TRIALS = 12
DIFFERS = ("wall_s", "peak_bytes", "engine_why", "plan")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Digits in float64, which Adam would tune at a rate of its own."""
    path = tmp_path / "small.yaml"
    tuned = {"lr": {"initial": 0.01, "schedule": {"windows": 3}}, "momentum": {"initial": 0.9}}
    content = {**DIGITS, "steps": 12, "hyperparameters": tuned, "outer": {"optimizer": "adam", "lr": 0.05, "steps": 1}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    read_lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in DIFFERS} for line in read_lines]


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_leaves_a_run_directory_with_its_trials(
    search: str, hyperopt: Any, tmp_path: Path, recipe: Path
) -> None:
    code, out, err = hyperopt("run", recipe, "--search", search, "--trials", TRIALS, "--out", "there", "--json")
    assert (code, err) == (0, "")
    there = tmp_path / "there"
    trials, run = lines(there / "trials.jsonl"), read(there)
    assert [line["trial"] for line in trials] == list(range(TRIALS))
    assert {line["kind"] for line in trials} == {"search"}
    stopped = [line for line in trials if "stopped at step" in line.get("why", "")]
    assert stopped, "the pruner has to bite"
    assert {line["price"] for line in stopped} <= {0.25, 0.5, 0.75}
    (start,) = lines(there / "metrics.jsonl")
    assert start["outer_step"] == 0
    assert start["hypergradient"] is None
    assert start["validation_loss"] == trials[0]["validation_loss"]
    finite = [line["validation_loss"] for line in trials if line["validation_loss"] is not None]
    best = json.loads((there / "result.json").read_text())["best"]
    assert run.result.status == "done"
    assert best["validation_loss"] == min(finite)
    assert best["outer_step"] is None
    assert trials[best["trial"]]["hyperparameters"] == best["hyperparameters"]
    assert run.result.test is not None
    row = json.loads(hyperopt("runs", ".", "--json").out)
    assert (row["best_validation_loss"], row["outer_step"]) == (min(finite), 0)
    printed = [json.loads(line) for line in out.splitlines()]
    assert [line["trial"] for line in printed if "trial" in line] == list(range(TRIALS))
    assert "result" in printed[-1]
    outer = yaml.safe_load((there / "resolved.yaml").read_text())["outer"]
    assert (outer["optimizer"], outer["trials"], outer["tied"], outer.get("lr")) == (search, TRIALS, False, None)


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_is_made_longer_and_is_then_as_one_that_was_longer_from_its_start(
    search: str, hyperopt: Any, tmp_path: Path, recipe: Path
) -> None:
    tied = ("--search-tied", "--search", search)
    assert hyperopt("run", recipe, *tied, "--trials", TRIALS, "--out", "whole").code == 0
    assert hyperopt("run", recipe, *tied, "--trials", 7, "--out", "parts").code == 0
    assert len(lines(tmp_path / "parts" / "trials.jsonl")) == 7
    assert hyperopt("run", "--resume", "parts", f"outer.trials={TRIALS}").code == 0
    whole, parts = (lines(tmp_path / name / "trials.jsonl") for name in ("whole", "parts"))
    assert whole == parts
    for line in whole:
        first, *others = line["hyperparameters"]["lr"]
        assert others == pytest.approx([first, first], rel=1e-12)


def test_a_search_prints_a_line_a_trial_with_its_price_and_the_time_left(hyperopt: Any, recipe: Path) -> None:
    code, out, _ = hyperopt("run", recipe, "--search", "random", "--trials", TRIALS)
    assert code == 0
    assert f"{TRIALS} trials by random" in out
    printed = [line for line in out.splitlines() if line.startswith("trial ")]
    assert [line.split()[1] for line in printed] == [f"{trial}/{TRIALS - 1}" for trial in range(TRIALS)]
    assert all(line.endswith(" s left)") and "price" in line for line in printed)
    assert printed[-1].endswith(" 0 s left)")
    assert any("stopped at step 3: worse than the median" in line for line in printed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [("--search", "random", "--trials", TRIALS), ("outer.optimizer=auto", "outer.lr=null")]
)
def test_runs_at_the_same_time_leave_what_runs_one_after_the_other_leave(
    method: tuple[Any, ...], hyperopt: Any, tmp_path: Path, recipe: Path
) -> None:
    assert hyperopt("run", recipe, *method, "--out", "one").code == 0
    code, out, err = hyperopt("run", recipe, *method, "--out", "two", "--jobs", 2)
    assert (code, err) == (0, "")
    assert "--jobs has ended" not in out
    for name in ("trials.jsonl", "metrics.jsonl"):
        one, two = (lines(tmp_path / folder / name) for folder in ("one", "two"))
        assert one == two
    assert not multiprocessing.active_children()


def test_jobs_are_for_a_run_that_no_other_processes_share(hyperopt: Any, recipe: Path) -> None:
    code, out, err = hyperopt("run", recipe, "--jobs", 2, "--nproc", 2)
    assert (code, out) == (2, "")
    assert "--jobs: the run is shared by several processes already" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--search", "tpa"], "--search: got tpa; must be one of random, tpe"),
        (["--search", "random", "outer.optimizer=sgd"], "--search random: got outer.optimizer=sgd too"),
        (["--search", "tpe", "--trials", "5", "outer.trials=6"], "--trials 5: got outer.trials=6 too"),
        (["--trials", "5"], "the outer optimizer adam takes no trials; random, tpe do"),
        (["--search-tied"], "the outer optimizer adam takes no tied; random, tpe do"),
        (["--search", "random", "outer.lr=0.1"], "the outer optimizer random takes no lr"),
        (["--search", "random", "--trials", "0"], "at least 1"),
        (["--search", "random", "outer.seed=fresh"], "the outer optimizer random compares runs of the same seeds"),
    ],
)
def test_a_search_that_does_not_hold_together_is_refused(
    arguments: list[str], said: str, hyperopt: Any, recipe: Path
) -> None:
    code, out, err = hyperopt("run", recipe, *arguments)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("given", "least"),
    [
        (["outer.budget=0.5"], "auto costs 1 "),
        (["outer={optimizer: adam, budget: 3}", "--mode", "reverse"], "adam costs 4 "),
    ],
)
def test_a_budget_without_room_for_the_first_point_is_refused_before_anything_is_written(
    given: list[str], least: str, hyperopt: Any, tmp_path: Path
) -> None:
    done = hyperopt("run", "digits_lr", *given, "--out", "there")
    assert done.code == 2
    assert f"the first point of {least}plain training runs" in done.err
    assert not (tmp_path / "there").exists()
