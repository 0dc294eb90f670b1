"""`hyperopt bench`: the table, the JSON file, the picture, and its errors; never a time."""

import json
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest

from hyperopt_cli import bench
from hyperopt_cli.bench import modes, team
from hyperopt_cli.bench.problems import blend
from hyperopt_cli.modes.reversal import kernels
from tests.bench.sizes import CHECKPOINTING, MODES, NETWORKS, RATE, REVERSAL
from tests.limited import warmed

SIZES = {
    "hvp": {"sizes": NETWORKS},
    "tangents": {"sizes": NETWORKS, "rate": RATE},
    "modes": {"sizes": MODES},
    "reversal": {"sizes": replace(REVERSAL, stored_steps=5)},
    "checkpointing": {"sizes": CHECKPOINTING},
    "ranks": {"sizes": NETWORKS},
    "outer": {},
}
# which keep a benchmark short
OPTIONS = {
    "hvp": ["--models", "logistic,mlp"],
    "tangents": ["--models", "mlp", "--columns", "2"],
    "outer": ["--problems", "quadratic", "--trials", "3"],
    "ranks": ["--models", "mlp", "--columns", "2", "--ranks", "1,2", "--bandwidth", "10", "--latency", "5"],
}
STARTS_PROCESSES = "ranks"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kernels, "cannot_compile", lambda: "no C++ compiler was found")
    monkeypatch.setattr(modes, "SCHEDULES", {"all rates at every step": blend})  # three steps are compiled for each
    load = bench.load
    monkeypatch.setattr(bench, "load", lambda name: partial(load(name), **SIZES[name]))
    monkeypatch.delenv("HYPEROPT_DATA", raising=False)
    monkeypatch.setattr(team, "get_context", lambda method: warmed())  # anew they start in bench/test_team.py


@pytest.fixture
def called(hyperopt):
    def call(name, *arguments):
        steps = ["--steps", "3"] if name in bench.OPTIONS["steps"] else []
        options = [*OPTIONS.get(name, []), *steps, "--repeat", "1", "--device", "cpu"]
        return hyperopt("bench", name, *options, *arguments)

    return call


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == STARTS_PROCESSES else []) for name in bench.BENCHMARKS],
)
def test_every_benchmark_ends_with_0_and_writes_what_it_is_asked_for(called, tmp_path, name):
    code, out, err = called(name, "--out", "there.json", "--plot", "there.png")
    assert code == 0, err
    told = err.splitlines()  # what is measured, where there is no terminal to draw it on
    measured = "quadratic, seed 0: " if name == "outer" else "warming up"
    assert sum(measured in line for line in told) >= 2
    assert not any(": round " in line for line in told)
    assert "torch" in out.splitlines()[0]
    assert ("T = 3" in out) is (name in bench.OPTIONS["steps"])
    read = json.loads((tmp_path / "there.json").read_text())
    assert read["benchmark"] == name
    for case in read["cases"]:
        medians = {variant["name"]: variant["timing"]["median_s"] for variant in case["variants"] if variant["timing"]}
        for variant in case["variants"]:
            assert variant["name"] in out
            if variant["over_reference"] is not None:
                ratio = medians[variant["name"]] / medians[case["reference"]]
                assert variant["over_reference"]["of_medians"] == pytest.approx(ratio)
    assert (tmp_path / "there.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"there.json", "there.png"}


def test_json_is_one_object(called):
    code, out, _ = called("checkpointing", "--json")
    assert code == 0
    assert json.loads(out)["settings"]["steps"] == 3


def test_the_table_is_markdown(called):
    _, out, _ = called("checkpointing")
    (header,) = [line for line in out.splitlines() if line.startswith("| variant")]
    rows = [line for line in out.splitlines() if line.startswith("| reverse, slots: ")]
    assert len(rows) == 3
    assert {row.count("|") for row in rows} == {header.count("|")}
    assert "measured over predicted" in header


def test_a_variant_that_is_not_available_is_told_with_the_reason(called):
    _, out, _ = called("reversal")
    assert "reversible, compiled: not available: " in out
    assert "no C++ compiler was found" in out
    assert "arithmetic back" in out


def test_threads_are_those_asked_for(called):
    code, out, _ = called("checkpointing", "--threads", "1", "--json")
    assert code == 0
    assert json.loads(out)["machine"]["threads"] == 1


def test_a_network_that_is_not_known_is_a_usage_error(hyperopt):
    code, _, err = hyperopt("bench", "hvp", "--models", "mpl")
    assert code == 2
    assert "got mpl; allowed are logistic, mlp" in err


def test_modes_looks_for_mnist_where_the_environment_says(called, monkeypatch, tmp_path):
    monkeypatch.setenv("HYPEROPT_DATA", str(tmp_path))
    code, _, err = called("modes")
    assert code == 2
    assert "MNIST" in err


MISTAKES = {
    "an unknown benchmark": (["reversl"], "did you mean reversal"),
    "no round": (["reversal", "--repeat", "0"], "--repeat"),
    "no step": (["reversal", "--steps", "0"], "--steps"),
    "steps of what has none": (["hvp", "--steps", "3"], "--steps: bench hvp does not take it"),
    "networks of what has its own": (["reversal", "--models", "mlp"], "--models: bench reversal does not take it"),
    "a number that is none": (["tangents", "--columns", "8,x"], "--columns: got 8,x"),
    "no column": (["tangents", "--columns", "0"], "numbers of at least 1"),
    "no rank": (["ranks", "--ranks", "0,2"], "--ranks: got 0,2"),
    "what ranks do not divide": (["ranks", "--shard", "rows"], "--shard: got rows; allowed are columns, batch"),
    "ranks of what has one": (["tangents", "--ranks", "1,2"], "--ranks: bench tangents does not take it"),
    "a problem that is none": (["outer", "--problems", "digit_lr"], "did you mean digits_lr"),
    "a method that is none": (["outer", "--methods", "cma"], "--methods: got cma; allowed are auto, random"),
    "data that are not there": (["outer", "--problems", "mnist_lr"], "mnist_lr reads MNIST or CIFAR-10; give --data"),
    "problems of what has none": (["modes", "--problems", "tabular"], "--problems: bench modes does not take it"),
    "a record in no folder": (["outer", "--record", "absent/r.jsonl"], "--record: absent is not a directory"),
    "a record of another kind": (["outer", "--record", "r.txt"], "ends with .jsonl"),
    "no bandwidth": (["ranks", "--bandwidth", "0"], "--bandwidth"),
    "no such device": (["reversal", "--device", "gpu"], "--device: got gpu"),
    "another format": (["reversal", "--plot", "plot.txt"], ".png or .svg"),
    "not JSON": (["reversal", "--out", "out.txt"], ".json"),
    "a folder that is not there": (["reversal", "--out", "absent/out.json"], "not a directory"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_before_anything_is_measured(hyperopt, tmp_path, monkeypatch, case):
    monkeypatch.setattr(bench, "load", lambda name: pytest.fail("it was measured"))
    arguments, said = MISTAKES[case]
    code, _, err = hyperopt("bench", *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(hyperopt, tmp_path):
    (tmp_path / "there.json").write_text("mine")
    code, _, err = hyperopt("bench", "reversal", "--out", "there.json")
    assert code == 2
    assert "exists" in err
    assert (tmp_path / "there.json").read_text() == "mine"


def test_every_benchmark_that_is_named_has_its_file():
    for name in bench.BENCHMARKS:
        assert callable(import_module(f"hyperopt_cli.bench.{name}").measure)
