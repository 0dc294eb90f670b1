"""`hyperopt train`: plain training, with the values of a recipe or with those that a run has tuned."""

import json
import os
import signal
import statistics

import pytest
import torch
import yaml

from hyperopt_cli.callback import Callback
from hyperopt_cli.commands.run import execute
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.instantiate import build
from hyperopt_cli.run_directory.directory import RunDirectory
from tests.instantiate.recipes import DIGITS, recipe_of

SECTIONS = {
    "steps": 20,
    "mode": "reverse",
    "outer": {"optimizer": "adam", "lr": 0.3, "steps": 2},
}


def tuned_run(folder, **changed):
    """A run that has tuned, with its experiment."""
    recipe = recipe_of(folder, **{**SECTIONS, **changed})
    experiment = build(recipe)
    directory = RunDirectory.create(folder / "run", "run")
    execute(experiment, recipe, (folder / "recipe.yaml").read_text(), directory, Callback())
    return directory, experiment


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return tuned_run(tmp_path_factory.mktemp("tuned"))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**DIGITS, **SECTIONS}))
    return path


def content(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("options", "point"), [((), "best"), (("--untuned",), "initial")])
def test_training_again_gives_the_figures_of_the_run(hyperopt, tmp_path, tuned, options, point):
    directory, _ = tuned
    code, out, err = hyperopt("train", directory.root, *options, "--out", "there")
    assert code == 0, err
    result = content(directory.result)
    assert result["best"]["outer_step"] > 0
    (line,) = lines(tmp_path / "there" / "metrics.jsonl")
    assert line["validation_loss"] == pytest.approx(result[point]["validation_loss"], rel=1e-6)
    other = {"best": "initial", "initial": "best"}[point]
    assert line["validation_loss"] != pytest.approx(result[other]["validation_loss"], rel=1e-3), "it has to bite"
    assert line["validation_accuracy"] == result[point]["validation_accuracy"]
    assert line["test_loss"] == pytest.approx(result["test"][point]["loss"], rel=1e-6)
    assert line["test_accuracy"] == result["test"][point]["accuracy"]
    assert "validation accuracy" in out
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names == {
        "recipe.yaml", "resolved.yaml", "environment.json", "status.json", "metrics.jsonl", "result.json", "model.pt",
        "tensorboard",
    }  # fmt: skip
    assert list((tmp_path / "there" / "tensorboard" / "inner_loss").iterdir())
    assert (tmp_path / "there" / "recipe.yaml").read_text() == directory.recipe.read_text()


def test_run_and_train_write_the_same_model(hyperopt, tmp_path, tuned):
    directory, _ = tuned
    assert hyperopt("train", directory.root, "--out", "there").code == 0
    state = torch.load(tmp_path / "there" / "model.pt", weights_only=True)
    best = torch.load(directory.model, weights_only=True)
    assert state.keys() == best.keys()
    assert all(torch.equal(state[name], best[name]) for name in state)


@pytest.mark.parametrize("model", [DIGITS["model"], {"call": "resnet", "depth": 8}], ids=["mlp", "batch norm"])
def test_the_model_that_is_written_is_the_one_that_was_measured(hyperopt, tmp_path, model):
    loaded = recipe_of(tmp_path, model=model, steps=3)
    assert hyperopt("train", "recipe.yaml", "--out", "there").code == 0
    state = torch.load(tmp_path / "there" / "model.pt", weights_only=True)
    assert any("running_var" in name for name in state) == (model["call"] == "resnet")
    experiment = build(loaded)
    net = experiment.evaluated({}, 1)  # other weights, the same modules
    net.load_state_dict(state)
    with torch.no_grad():
        met = [net(batch.inputs).argmax(dim=1) == batch.targets for batch, _ in experiment.data.test]
    (line,) = lines(tmp_path / "there" / "metrics.jsonl")
    assert torch.cat(met).double().mean().item() == pytest.approx(line["test_accuracy"], abs=1e-12)


def test_the_accuracy_of_each_outer_step_is_that_of_the_validation_split(tuned):
    directory, experiment = tuned
    result, steps = content(directory.result), lines(directory.metrics)
    assert [step["validation_accuracy"] for step in steps if step["outer_step"] == result["best"]["outer_step"]] == [
        result["best"]["validation_accuracy"]
    ]
    net = experiment.evaluated({}, 0)
    net.load_state_dict(torch.load(directory.model, weights_only=True))
    met = [net(batch.inputs).argmax(dim=1) == batch.targets for batch, _ in experiment.data.validation]
    assert torch.cat(met).double().mean().item() == pytest.approx(result["best"]["validation_accuracy"], abs=1e-12)
    assert steps[0]["validation_accuracy"] == result["initial"]["validation_accuracy"]
    assert len({step["validation_accuracy"] for step in steps}) > 1, "it has to bite"


def test_several_seeds_give_mean_and_spread_of_tuned_and_untuned_values(hyperopt, tmp_path, tuned):
    directory, _ = tuned
    code, out, _ = hyperopt("train", directory.root, "--seeds", 3, "--out", "there", "--json")
    assert code == 0
    *told, last = map(json.loads, out.splitlines())
    assert told == lines(tmp_path / "there" / "metrics.jsonl")
    assert [(line["values"], line["seed"]) for line in told] == [
        (kind, seed) for seed in (0, derive(0, "train", 1), derive(0, "train", 2)) for kind in ("tuned", "untuned")
    ]
    assert last["result"] == content(tmp_path / "there" / "result.json")
    for kind in ("tuned", "untuned"):
        for figure in ("validation_loss", "test_loss", "test_accuracy"):
            numbers = [line[figure] for line in told if line["values"] == kind]
            assert len(set(numbers)) > 1
            expected = {"mean": statistics.fmean(numbers), "std": statistics.stdev(numbers)}
            assert last["result"][kind][figure] == pytest.approx(expected)
    shown = hyperopt("show", "there").out
    assert "tuned (3 seeds)" in shown
    assert "+-" in shown
    (row,) = map(json.loads, hyperopt("runs", "there", "--json").out.splitlines())
    assert (row["mode"], row["state"]) == ("train", "done")
    assert row["best_validation_loss"] == min(line["validation_loss"] for line in told)
    for what in (("run", "--resume", "there"), ("train", "there")):
        code, _, err = hyperopt(*what)
        assert code == 2
        assert "hyperopt train has written there" in err


def test_a_longer_horizon_stretches_the_schedule_and_an_override_takes_the_place_of_what_was_tuned(
    hyperopt, tmp_path, tuned
):
    directory, _ = tuned
    assert hyperopt("train", directory.root, "steps=40", "hyperparameters.lr.initial=0.2", "--out", "there").code == 0
    (line,) = lines(tmp_path / "there" / "metrics.jsonl")
    assert line["steps"] == 40
    assert line["hyperparameters"]["lr"] == pytest.approx([0.2] * 3)
    assert "steps: 40" in (tmp_path / "there" / "resolved.yaml").read_text()


@pytest.mark.parametrize("start", [0.1, [0.1] * 4], ids=["one number", "a list"])
def test_a_list_per_step_of_another_length_is_refused(hyperopt, tmp_path, start):
    lr = {"initial": start, "schedule": "per_step"}
    directory, _ = tuned_run(tmp_path, steps=4, hyperparameters={"lr": lr, "momentum": 0.9})
    code, _, err = hyperopt("train", directory.root, "steps=8", "--out", "there")
    assert code == 2
    assert "hyperparameters.lr" in err
    assert "8" in err
    assert "per_step" in err or "one for each of the steps" in err
    assert not (tmp_path / "there" / "metrics.jsonl").exists()


def test_a_run_that_diverges_says_at_which_step(hyperopt, tmp_path, recipe):
    code, out, err = hyperopt("train", recipe, "hyperparameters.lr.initial=1e308", "--out", "there", "--seeds", 2)
    assert code == 3
    assert "is not finite at inner step" in err
    assert "2 of 2" in out
    assert content(tmp_path / "there" / "status.json")["state"] == "diverged"
    assert content(tmp_path / "there" / "result.json")["untuned"]["num_diverged"] == 2
    assert [line["validation_loss"] for line in lines(tmp_path / "there" / "metrics.jsonl")] == [None, None]
    assert not (tmp_path / "there" / "model.pt").exists()


@pytest.mark.parametrize(("name", "expected"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_ends_it_in_words_and_keeps_the_runs_before(hyperopt, tmp_path, recipe, monkeypatch, name, expected):
    from hyperopt_cli.commands import train

    plain_run, calls = train.plain_run, []

    def interrupted(*arguments, **further):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return plain_run(*arguments, **further)

    monkeypatch.setattr(train, "plain_run", interrupted)
    code, _, err = hyperopt("train", recipe, "--seeds", 3, "--out", "there")
    assert code == expected
    assert f"stopped by {name}" in err
    assert "start anew: hyperopt train" in err
    assert len(calls) == 2
    assert content(tmp_path / "there" / "status.json")["state"] == "interrupted"
    assert len(lines(tmp_path / "there" / "metrics.jsonl")) == 1
    assert (tmp_path / "there" / "model.pt").exists()


def test_a_recipe_may_start_from_a_state_dict(hyperopt, tmp_path, tuned, recipe):
    directory, _ = tuned
    still = ["hyperparameters.lr=1e-9", "hyperparameters.momentum={initial: 0.5}", "steps=6"]
    state = f"model.state_dict={directory.model}"
    code, _, err = hyperopt("train", recipe, state, *still, "--seeds", 2, "--out", "there")
    assert code == 0, err
    best, told = content(directory.result)["best"], lines(tmp_path / "there" / "metrics.jsonl")
    assert [line["validation_loss"] for line in told] == pytest.approx([best["validation_loss"]] * 2, rel=1e-5)
    assert told[0]["seed"] != told[1]["seed"]


LAYERS = {"1.weight": torch.zeros(5, 64), "1.bias": torch.zeros(5), "3.weight": torch.zeros(10, 5)}
REFUSED = {
    "no file": (None, "which is no file"),
    "no state_dict": (b"no pickle", "does not read"),
    "a checkpoint": ({"epoch": 3, "model": {}}, "the keys epoch, model"),
    "a missing name": (LAYERS, "lacks 3.bias"),
    "another shape": ({"1.weight": torch.zeros(6, 64)}, "has 1.weight as [6, 64], must be [5, 64]"),
    "a name too many": ({"5.weight": torch.zeros(6)}, "has besides 5.weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_dict_that_does_not_fit_is_refused(hyperopt, tmp_path, recipe, case):
    written, words = REFUSED[case]
    if isinstance(written, bytes):
        (tmp_path / "w.pt").write_bytes(written)
    elif written is not None:
        torch.save(written, tmp_path / "w.pt")
    recipe.write_text(recipe.read_text().replace("model:\n", "model:\n  state_dict: w.pt\n"))
    code, _, err = hyperopt("train", recipe, "--out", "there")
    assert code == 2
    where = f"small.yaml:{recipe.read_text().split('state_dict')[0].count(chr(10)) + 1}:"
    assert where in err
    assert "model.state_dict: " in err
    assert words in err
    assert not (tmp_path / "there").exists()
