"""The benchmark of the outer loop: its problems, what it keeps, and how methods are compared."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.bench import outer
from hyperopt_cli.bench.outer import METHODS, measure, races
from hyperopt_cli.bench.outer_problems import FACTORS, PROBLEMS, friedman, small_data, small_model, tuning_problem
from hyperopt_cli.bench.outer_race import Race
from hyperopt_cli.bench.outer_tables import judged_loss
from hyperopt_cli.bench.report import Settings
from hyperopt_cli.data import InMemory
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.plain_run import plain_run
from hyperopt_cli.outer.terrain import Terrain

SIZES = {
    "quadratic": 1, "digits_lr": 7, "mnist_lr": 7, "cifar_lr_cpu": 7, "small_regression": 4, "tabular": 4, "adamw": 6,
    "per_layer": 16, "per_step": 100, "pixel_decay": 784,
}  # fmt: skip
DATA = os.environ.get("HYPEROPT_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HYPEROPT_DATA names no folder with MNIST/raw and cifar10")
SMALL = Settings(repeat=2, problems=("quadratic",), methods=("auto", "random", "random_tied"), trials=3)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_data] if listed.folder else []) for name, listed in PROBLEMS.items()]
)
def test_a_problem_starts_two_decades_apart_within_one_box(name: str) -> None:
    problems = {start: tuning_problem(name, 1, start, None if DATA is None else Path(DATA)) for start in FACTORS}
    terrains = {start: Terrain.of(problem.space, problem.steps, True) for start, problem in problems.items()}
    ordinary = terrains["ordinary"]
    assert len(ordinary.start) == SIZES[name]
    for start, terrain in terrains.items():
        torch.testing.assert_close(torch.stack(terrain.box()), torch.stack(ordinary.box()))
        moved = terrain.start - ordinary.start
        assert set(moved.round(decimals=6).tolist()) <= {0.0, round(math.log10(FACTORS[start]), 6)}
        assert start == "ordinary" or moved.any()
        low, high = terrain.box()
        assert bool(((low - 1e-9 <= terrain.start) & (terrain.start <= high + 1e-9)).all())


def test_runs_that_judge_have_other_seeds_and_the_same_split() -> None:
    problem = tuning_problem("adamw", 0, "ordinary")
    seeds = problem.held_out(5)
    assert len({*seeds, problem.seed}) == 6
    hyper = {key: knob.initial for key, knob in problem.space.tuned().items()}
    runs = [plain_run(replace(problem.problem(seed), steps=3), hyper) for seed in (problem.seed, seeds[0])]
    assert problem.has_test
    assert runs[0].value != runs[1].value
    assert problem.test(runs[0].params, problem.seed) != problem.test(runs[1].params, seeds[0])
    (one, other) = (problem.problem(seed).outer_batches for seed in (problem.seed, seeds[0]))
    assert one is other


def test_the_tabular_data_are_those_of_the_paper() -> None:
    test = friedman(num_train=5, num_test=50).test
    assert isinstance(test, InMemory)
    x = test.inputs
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5).square() + 10 * x[:, 3] + 5 * x[:, 4]
    torch.testing.assert_close(5 * test.targets[:, 0] + 14, y)
    assert bool(((x >= 0) & (x < 1)).all())


def test_the_small_regression_is_that_of_the_readme() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    names: dict[str, Any] = {}
    exec(text.split("# mine.py\n")[1].split("```")[0], names)
    x, y = names["data"]()
    train = small_data().train
    assert isinstance(train, InMemory)
    assert train.inputs.equal(x)
    assert train.targets.flatten().equal(y.flatten())
    assert str(small_model(7)) == str(names["model"](7))


def test_what_the_record_has_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SMALL, record=tmp_path / "record.jsonl")
    report = measure(settings)
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (3 + 3 + 2)  # seeds; starts as they are, of auto, and a search each
    for line in lines:
        prices = [price for price, _, _ in line["evaluations"]]
        assert prices == sorted(prices)
        assert line["box"] == "lr 0.001 to 10"
        assert line["method"] != "random" or len(prices) == 3

    def measured_again(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(outer, "run_race", measured_again)
    again = measure(settings)
    assert (again.tables, again.curves) == (report.tables, report.curves)
    with pytest.raises(AssertionError):
        measure(replace(settings, trials=4))
    with pytest.raises(AssertionError):
        measure(replace(settings, repeat=3))
    (tmp_path / "record.jsonl").write_text(json.dumps(lines[0] | {"box": "lr 0.01 to 10"}) + "\n")
    with pytest.raises(UsageError, match=r"in the box lr 0\.01 to 10 over 20 steps; now it is lr 0\.001 to 10"):
        measure(settings)


def of(losses: list[float], num: int = 2, evaluations: list[Any] | None = None) -> dict[str, Any]:
    """A line of the record, of whose values at 20, 40 and in the end the held-out loss is given."""
    best = {
        at: {"value": 0.0, "held_out": [9.0], "test": [loss] * 2}
        for at, loss in zip(("20", "40", "end"), losses, strict=True)
    }
    return {"best": best, "num": num, "evaluations": evaluations or [], "steps": 1, "box": "", "wall_s": 1.0}


@pytest.mark.parametrize("num", [2, 16])
def test_the_better_search_counts_and_seeds_are_paired(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    found = {
        ("auto", 0): [0.5, 0.3, 0.3], ("auto", 1): [0.6, 0.4, 0.4], ("auto", 2): [0.9, 0.9, 0.9],
        ("random", 0): [0.4, 0.4, 0.2], ("random", 1): [0.7, 0.5, 0.2], ("random", 2): [0.8, 0.8, 0.8],
        ("tpe", 0): [0.1, 0.1, 0.1], ("tpe", 1): [2.0, 2.0, 2.0], ("tpe", 2): [2.0, 2.0, math.inf],
        ("none", 0): [0.4, 0.4, 0.4], ("none", 1): [0.3, 0.3, 0.3], ("none", 2): [math.inf] * 3,
    }  # fmt: skip
    monkeypatch.setattr(outer, "run_race", lambda race, *_: of(found[race.method, race.seed], num) | {"trials": None})
    report = measure(Settings(repeat=3, problems=("adamw",), methods=("auto", "random", "tpe")))
    against, starts, _ = report.tables
    row = against.rows[0]
    assert (row["at_20"], row["at_20_search"], row["at_40_search"]) == (0.6, "0.7 (random)", "0.5 (random)")
    assert row["at_20_difference"] == pytest.approx(0.1)  # of 0.1, -0.1 and 0.1
    assert row["at_40_difference"] == pytest.approx(-0.1)  # of -0.1, -0.1 and 0.1
    all_trials = row["at_20_over_all_trials_search"], row["at_20_over_all_trials_difference"]
    assert all_trials == ((None, None) if num < 16 else ("0.2 (random)", pytest.approx(0.3)))
    assert (starts.rows[0]["worse_seeds"], starts.rows[0]["seeds"]) == (1, 3)


def test_a_run_that_diverges_makes_the_loss_infinite_and_without_a_test_split_it_is_the_validation_loss() -> None:
    line = of([0.5, 0.5, 0.5])
    assert judged_loss(line, "20") == 0.5
    line["best"]["20"] |= {"test": None, "held_out": [1.0, 3.0]}
    line["best"]["40"] |= {"test": [1.0, math.inf]}
    del line["best"]["end"]
    assert (judged_loss(line, "20"), judged_loss(line, "40"), judged_loss(line, "end")) == (2.0, math.inf, math.inf)


def test_a_race_of_each_method_is_of_each_seed_and_start() -> None:
    found = list(races(("quadratic", "cifar_lr_cpu"), METHODS, 5))
    assert len(found) == len(set(found)) == (5 + 2) * (3 + 3 + 4)
    assert Race("cifar_lr_cpu", 1, "tpe_tied", "ordinary") in found
