"""`hyperopt validate` says every mistake at once: one does not hide another, and none is made up."""

from pathlib import Path
from typing import Any

import pytest

GOOD = """\
model: {call: mlp, hidden: [8]}
dataset: {call: digits, batch_size: 32}
loss: cross_entropy
optimizer: {name: sgd}
steps: 30
hyperparameters:
  lr: {initial: 0.1, transform: log, schedule: {windows: 2}}
  momentum: {initial: 0.9, transform: logit}
groups:
- {parameters: [biases], weight_decay: 0}
"""
SLIP = ("  momentum:", "  momentun:", "hyperparameters.momentun: unknown hyperparameter; did you mean momentum?")
NEGATIVE = ("initial: 0.1", "initial: -0.1", "hyperparameters.lr.initial: ")
GROUP = ("[biases]", "[baises]", "groups.0.parameters: got 'baises', which names no parameter; did you mean biases?")
LOSS = ("loss: cross_entropy", "loss: cros_entropy", "loss: got 'cros_entropy'; did you mean cross_entropy?")
OWN_LOSS = ("loss: cross_entropy", "loss: {call: torch.nn.functional.cros_entropy}", "loss.call: torch.nn.functional")
OPTIMIZER = ("name: sgd", "name: sdg", "optimizer.name: got 'sdg'; did you mean sgd?")
ARGUMENT = ("name: sgd", "name: sgd, nestrov: true", "optimizer.nestrov: unknown argument; did you mean nesterov?")
MODEL = ("call: mlp", "call: mpl", "model.call: no model is called 'mpl'; did you mean mlp?")
DATA = ("batch_size: 32", "batchsize: 32", "dataset.batchsize: unknown argument; did you mean batch_size?")
STEPS = ("steps: 30", "stesp: 30", "stesp: unknown key; did you mean steps?")
RANGE = ("initial: 0.9", "initial: 1.9", "hyperparameters.momentum.initial: ")
BOUNDS = (
    "initial: 0.9",
    "initial: 0.9, bounds: [0.1, 0.5], fro: 1",
    "hyperparameters.momentum.initial: got 0.9; must lie",
)
KEY = ("initial: 0.9", "initial: 0.9, bounds: [0.1, 0.5], fro: 1", "hyperparameters.momentum.fro: unknown key")
TOGETHER: dict[str, tuple[tuple[str, str, str], ...]] = {
    "a loss and a hyperparameter": (LOSS, SLIP),
    "a loss, a start and a group": (LOSS, NEGATIVE, GROUP),
    "an own loss and a slip": (OWN_LOSS, SLIP, NEGATIVE),
    "an optimizer and a hyperparameter": (OPTIMIZER, SLIP, NEGATIVE),
    "an optimizer's argument and a start": (ARGUMENT, NEGATIVE, SLIP),
    "a model and a hyperparameter": (MODEL, SLIP),
    "a data set's argument, a slip and a group": (DATA, SLIP, GROUP),
    "steps and a hyperparameter": (STEPS, SLIP),
    "one hyperparameter and another": (NEGATIVE, RANGE),
    "an unknown key beside bounds": (KEY, BOUNDS),
    "nearly everything": (MODEL, DATA, LOSS, ARGUMENT, STEPS, SLIP),
}


def validated(text: str, hyperopt: Any, *arguments: str) -> tuple[int, str, str]:
    Path("recipe.yaml").write_text(text)
    code, out, err = hyperopt("validate", "recipe.yaml", *arguments)
    return code, out, err


def changed(*changes: tuple[str, str, str]) -> str:
    text = GOOD
    for old, new, _ in changes:
        assert old in text or new in text
        text = text if new in text else text.replace(old, new)
    return text


@pytest.mark.parametrize("changes", TOGETHER.values(), ids=TOGETHER)
def test_mistakes_are_said_together(changes: tuple[tuple[str, str, str], ...], hyperopt: Any) -> None:
    code, _, err = validated(changed(*changes), hyperopt)
    assert code == 2
    for _, _, said in changes:
        assert said in err
    num_said = len({said for _, _, said in changes})
    missing = int("stesp" in err)  # that steps are missing is a mistake of its own
    assert len(err.strip().splitlines()) == num_said + missing, err


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((("loss: cross_entropy", "loss: {call: own.los}", ""), ("momentum", "beta", "")), id="own loss"),
        pytest.param((("initial: 0.1, transform: log", "initial: -1, transfrm: identity", ""),), id="a transform"),
        pytest.param((("steps: 30", "steps: many", ""), ("windows: 2", "windows: 40", "")), id="steps"),
        pytest.param((("call: mlp", "call: mpl", ""), ("[biases]", "[head.*]", "")), id="a group of no known model"),
        pytest.param((("hidden: [8]", "hiden: [8, 8]", ""), ("[biases]", "[4.*]", "")), id="a group of a deeper model"),
    ],
)
def test_what_may_come_of_a_mistake_is_no_second_one(changes: Any, hyperopt: Any) -> None:
    code, _, err = validated(changed(*changes), hyperopt)
    assert code == 2
    assert len([line for line in err.splitlines() if "recipe.yaml:" in line]) == 1, err


def test_a_good_recipe_is_valid(hyperopt: Any) -> None:
    assert validated(GOOD, hyperopt)[0] == 0


OWN = """
import torch
def numbers():
    x = torch.zeros(20, 4)
    return x, torch.linspace(0, 1, 20)
def classes():
    return torch.zeros(20, 4), torch.arange(20) % 3
def absent():
    raise FileNotFoundError("it lies elsewhere")
def net(input_shape, width):
    return torch.nn.Linear(input_shape[0], width)
def sized(num_classes):
    return torch.nn.Sequential(torch.nn.Linear(4, num_classes))
def loss(outputs, targets, scale):
    return scale * (outputs - targets).square().mean()
class Loss(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
def data(root):
    return numbers()
"""
NUMBERS = "dataset={call: foreseen_own.numbers}"
MISSING = "the argument num_classes is missing; add num_classes: VALUE (targets are numbers"
BINDING: dict[str, tuple[tuple[str, ...], str]] = {
    "mlp on numbers": ((NUMBERS, "loss=mse"), MISSING),
    "mlp on numbers, its loss left out": ((NUMBERS,), MISSING),
    "convnet on numbers": ((NUMBERS, "model={call: convnet}"), MISSING),
    "own model on numbers": ((NUMBERS, "model={call: foreseen_own.sized}", "groups=[]"), MISSING),
    "mlp on numbers, told": ((NUMBERS, "loss=mse", "model.num_classes=1"), ""),
    "mlp on classes": (("dataset={call: foreseen_own.classes}",), ""),
    "mlp on data that lie elsewhere": (("dataset={call: foreseen_own.absent}",), ""),
    "own model lacks what no data set knows": (("model={call: foreseen_own.net}",), "the argument width is missing"),
    "own data set lacks its root": (("dataset={call: foreseen_own.data}",), "the argument root is missing"),
    "own loss lacks a number": (("loss={call: foreseen_own.loss}",), "the argument scale is missing"),
    "own loss lacks a number for its constructor": (
        ("loss={call: foreseen_own.Loss}",),
        "the argument scale is missing",
    ),
    "no data set for mlp": (("dataset=null", "loss=output"), "the argument input_shape is missing"),
    "a group of an own model": (("model={call: foreseen_own.sized}", "groups.0.parameters=[1.weight]"), "1.weight"),
    "its group, right": (("model={call: foreseen_own.sized}", "groups.0.parameters=[0.weight]"), ""),
    "a group of torchvision": (
        ("model={call: torchvision.models.resnet18}", "groups.0.parameters=[fcc.*]"),
        "groups.0.parameters: got 'fcc.*', which names no parameter",
    ),
    "of torch.nn": (
        ("model={call: torch.nn.Linear, in_features: 64, out_features: 10}", "groups.0.parameters=[wieght]"),
        "groups.0.parameters: got 'wieght', which names no parameter; did you mean weight?",
    ),
}


@pytest.mark.parametrize(("overrides", "said"), BINDING.values(), ids=BINDING)
def test_required_arguments_are_bound_and_groups_found(overrides: tuple[str, ...], said: str, hyperopt: Any) -> None:
    Path("foreseen_own.py").write_text(OWN)
    code, _, err = validated(GOOD, hyperopt, *overrides, "--allow-import", "foreseen_own.*")
    assert (code == 0) == (said == ""), err
    assert said in err
    assert "Traceback" not in err
