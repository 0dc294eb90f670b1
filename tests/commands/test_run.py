"""A run from start to result: what is best, and what the test split is measured at."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.callback import Callback
from hyperopt_cli.commands.run import execute
from hyperopt_cli.errors import Stopped, UsageError
from hyperopt_cli.instantiate import build
from hyperopt_cli.outer.descent import descend
from hyperopt_cli.outer.outer_step import OuterStep
from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.reading import read
from hyperopt_cli.run_directory.signals import StopFlag
from hyperopt_cli.stopping import stopped_by
from tests.instantiate.recipes import recipe_of

# The rate grows by a factor of e^2.5 at each outer step, past what is stable: there the hypergradient becomes noise,
# and the step is halved.
TOO_FAR = {
    "hyperparameters": {"lr": 0.003, "momentum": {"value": 0.5}},
    "outer": {"optimizer": "sign", "lr": 2.5, "steps": 4},
    "steps": 20,
}


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Any, Any, list[OuterStep]]:
    recipe = recipe_of(tmp_path, **TOO_FAR)
    experiment = build(recipe)
    directory = RunDirectory.create(tmp_path / "out", "run")
    execute(experiment, recipe, "as written", directory, Callback())
    steps = list(descend(experiment.problem, experiment.space, experiment.descent, experiment.mode, experiment.seed))
    return read(tmp_path / "out"), experiment, steps


def test_the_best_is_the_lowest_validation_loss_not_the_last(finished: Any) -> None:
    run, _, steps = finished
    losses = [step.validation_loss for step in steps]
    best = losses.index(min(losses))
    assert 0 < best < len(steps) - 1, "the recipe must pass its best"
    assert run.result.best.outer_step == best
    assert run.result.best.validation_loss == losses[best]
    assert run.result.best.hyperparameters == {name: x.tolist() for name, x in steps[best].hyperparameters.items()}


def test_the_test_split_is_measured_at_the_start_and_at_the_best(finished: Any) -> None:
    run, experiment, steps = finished
    for score, n in ((run.result.test.initial, 0), (run.result.test.best, run.result.best.outer_step)):
        figures = experiment.test(steps[n].params, n)
        assert (score.loss, score.accuracy) == (figures.loss, figures.accuracy)


MODULE = """
import torch
from torch import nn

class Features(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("directions", torch.randn(64, 100) / 8)
        self.frozen = nn.Linear(100, 100).requires_grad_(False)
        self.head = nn.Linear(100, num_classes)

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(torch.cos(x.flatten(1) @ self.directions))))
"""


def test_random_buffers_and_frozen_weights_are_the_same_in_training_and_in_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "featured.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of(
        tmp_path, ("featured.*",), model={"call": "featured.Features"}, steps=100,
        hyperparameters={"lr": 1.0, "momentum": 0.9, "weight_decay": 0.01}, outer={"steps": 0},
    )  # fmt: skip
    experiment = build(recipe, ("featured.*",))
    (step,) = descend(experiment.problem, experiment.space, experiment.descent, experiment.mode, experiment.seed)
    assert set(step.params) == {"head.weight", "head.bias"}
    assert experiment.test(step.params, 0).accuracy > 0.5


def test_dropout_and_augmentation_differ_from_step_to_step(tmp_path: Path) -> None:
    experiment = build(
        recipe_of(
            tmp_path,
            model={"call": "mlp", "hidden": [200], "dropout": 0.5},
            dataset={"call": "digits", "batch_size": 1293, "crop": 1, "flip": True, "validation_fraction": 0.1},
        )
    )
    problem = experiment.problem(0)
    first, second = problem.batch(0), problem.batch(1)
    params = problem.initial({})
    hyper = {"lr": torch.tensor(0.1)}
    same_inputs = second._replace(inputs=first.inputs, targets=first.targets)
    losses = [float(problem.training_loss(params, hyper, batch)) for batch in (first, first, same_inputs)]
    assert losses[0] == losses[1] != losses[2], "dropout"
    plain = build(recipe_of(tmp_path, dataset={"call": "digits", "batch_size": 1293, "validation_fraction": 0.1}))
    unmoved = plain.problem(0)
    moved = [
        ((problem.batch(t).inputs - unmoved.batch(t).inputs).flatten(1).abs().sum(dim=1) > 0).double().mean()
        for t in (0, 1)
    ]
    assert min(moved) > 0.9, "nearly every picture is moved"
    order = [unmoved.batch(t).inputs.flatten(1).sum(dim=1).argsort() for t in (0, 1)]
    change = [(problem.batch(t).inputs - unmoved.batch(t).inputs)[order[t]] for t in (0, 1)]
    assert not torch.equal(change[0], change[1]), "each step draws its own"


def test_an_interrupted_run_leaves_its_best_model_too(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, outer={"steps": 3, "lr": 0.3})
    experiment, directory, flag = build(recipe), RunDirectory.create(tmp_path / "out", "run"), StopFlag()

    class Stopping(Callback):
        def on_outer_step(self, step: Any) -> None:
            flag.signal = "SIGTERM" if step.outer_step == 1 else None

    with stopped_by(flag.check), pytest.raises(Stopped):
        execute(experiment, recipe, "as written", directory, Stopping(), flag)
    run = read(tmp_path / "out")
    assert (run.result.status, run.result.best.outer_step) == ("interrupted", 1)
    model = experiment.evaluated({}, 0)
    model.load_state_dict(torch.load(directory.model, weights_only=True))
    params = dict(model.named_parameters())
    assert experiment.validation_accuracy(params, 0) == run.result.best.validation_accuracy
    assert run.metrics[0].validation_accuracy != run.metrics[1].validation_accuracy, "it has to bite"


FAILING = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Linear):
    scored = 0
    def forward(self, x):
        if len(x) == 31 and not torch.is_grad_enabled():
            Net.scored += 1
            if Net.scored > {allowed}:
                raise {error}("at the end")
        return super().forward(x)

def model(): return Net(4, 3)

def data():
    x = torch.randn(91, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return TensorDataset(x[:60], y[:60]), TensorDataset(x[60:], y[60:])
"""


@pytest.mark.parametrize("error", ["RuntimeError", "IndexError", "ZeroDivisionError", "KeyError", "AssertionError"])
@pytest.mark.parametrize("allowed", [0, 1])
def test_whatever_fails_when_the_end_is_scored_the_tuned_values_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, allowed: int
) -> None:
    name = f"failing_{error}_{allowed}".lower()
    (tmp_path / f"{name}.py").write_text(FAILING.format(error=error, allowed=allowed))
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of(
        tmp_path,
        (name,),
        model={"call": f"{name}.model"},
        dataset={"call": f"{name}.data", "batch_size": 8},
        hyperparameters={"lr": 0.05},
        outer={"steps": 2, "lr": 0.3},
    )
    experiment = build(recipe, (name,))
    directory = RunDirectory.create(tmp_path / "out", "run")
    with pytest.raises(UsageError, match=f"the test split can't be scored: {error}.*is in result.json"):
        execute(experiment, recipe, "as written", directory, Callback())
    run = read(tmp_path / "out")
    assert run.result.test is None
    if allowed:  # the start was scored, the end is not
        assert run.result.status == "done"
        assert run.result.best.outer_step == 2
        assert run.result.best.hyperparameters["lr"] != 0.05
    else:
        assert run.result.status == "failed"
        assert run.result.best.hyperparameters["lr"] == pytest.approx(0.05)
