"""Bad recipes and command lines: exit 2, the place is named, no traceback, nothing is written."""

import re

import pytest

GOOD = """\
model: {call: mlp, hidden: [8]}
dataset: {call: digits, batch_size: 32}
optimizer: {name: sgd}
steps: 3
hyperparameters:
  lr: {initial: 0.1, transform: log, schedule: {windows: 2}}
  momentum: {initial: 0.9, transform: logit}
outer: {optimizer: adam, lr: 0.05, steps: 1}
"""

# what is replaced in GOOD, by what, where the message points (line:column), and a word of it
RECIPES = {
    "unknown key": ("steps: 3", "stesp: 3", "4:1", "did you mean steps"),
    "missing key": ("steps: 3\n", "", "", "steps"),
    "negative steps": ("steps: 3", "steps: -3", "4:8", "at least 1"),
    "steps in words": ("steps: 3", "steps: many", "4:8", "integer"),
    "fractional steps": ("steps: 3", "steps: 2.5", "4:8", "integer"),
    "duplicate key": ("steps: 3", "steps: 3\nsteps: 4", "5:1", "twice"),
    "syntax": ("steps: 3", "steps: [3", "", ""),
    "tab": ("  lr:", "\tlr:", "6:", ""),
    "no mapping": (GOOD, "- 1\n", "1:1", "mapping"),
    "empty": (GOOD, "", "", ""),
    "unknown model": ("call: mlp", "call: mpl", "1:", "did you mean mlp"),
    "unknown model argument": ("hidden: [8]", "hiden: [8]", "1:20", "did you mean hidden"),
    "model's value refused": ("hidden: [8]", "activation: swoosh", "1:", "swoosh"),
    "model elsewhere": ("call: mlp", "call: os.system", "1:", "--allow-import"),
    "model by a detour": ("call: mlp", "call: torch.nn.init.math.sqrt", "1:", "--allow-import"),
    "unknown data set": ("call: digits", "call: digit", "2:", "did you mean digits"),
    "unknown data set argument": ("batch_size: 32", "batchsize: 32", "2:", "did you mean batch_size"),
    "batch of 0": ("batch_size: 32", "batch_size: 0", "2:37", "at least 1"),
    "batch too large": ("batch_size: 32", "batch_size: 100000", "", "100000"),
    "fraction above 1": ("batch_size: 32", "validation_fraction: 1.5", "2:", "1.5"),
    "crop of features": ("call: digits, batch_size: 32", "call: synthetic, flip: true", "", "crop and flip"),
    "missing data set": ("call: digits", "call: mnist, root: nowhere", "", "dataset.download=true"),
    "unknown optimizer": ("name: sgd", "name: sdg", "3:", "did you mean sgd"),
    "unknown optimizer argument": ("{name: sgd}", "{name: sgd, nestorov: true}", "3:", "did you mean nesterov"),
    "nesterov with dampening": ("{name: sgd}", "{name: sgd, nesterov: true, dampening: 0.1}", "3:", "dampening of 0"),
    "unknown hyperparameter": ("  momentum:", "  momentun:", "7:3", "did you mean momentum"),
    "another optimizer's": ("  momentum:", "  beta1:", "7:3", "beta1"),
    "nothing tuned": (
        "{initial: 0.1, transform: log, schedule: {windows: 2}}\n  momentum: {initial: 0.9, transform: logit}",
        "{value: 0.1}",
        "",
        "nothing is tuned",
    ),
    "initial and value": ("initial: 0.9", "initial: 0.9, value: 0.9", "7:", "both"),
    "log from 0": ("initial: 0.1", "initial: 0", "6:", "identity"),
    "logit from 0": ("initial: 0.9", "initial: 0.0", "7:", "identity, bounds: [0, 1]"),
    "logit from 1": ("initial: 0.9", "initial: 1.0", "7:", "identity"),
    "unknown transform": ("transform: logit", "transform: logic", "7:", "did you mean logit"),
    "bounds upside down": ("transform: logit", "transform: identity, bounds: [1, 0]", "7:", "bounds"),
    "log below 0": ("transform: log,", "transform: log, bounds: [-1, 1],", "6:", "above 0"),
    "more windows than steps": ("windows: 2", "windows: 9", "6:", "9 over 3 steps"),
    "list of the wrong length": ("initial: 0.1", "initial: [0.1, 0.2, 0.3]", "6:", "3"),
    "a list over more windows than steps": (
        "initial: 0.1, transform: log, schedule: {windows: 2}",
        "initial: [1, 2, 3, 4], transform: log, schedule: {windows: 4}, per: layer",
        "6:",
        "4 over 3 steps",
    ),
    "unknown schedule": ("{windows: 2}", "warmup_cosin", "6:", "did you mean warmup_cosine"),
    "a word as a number": ("initial: 0.9", "initial: high", "7:", "number"),
    "no is a string": ("initial: 0.9", "initial: no", "7:", "number"),
    "not finite": ("initial: 0.9", "initial: .nan", "7:", "finite"),
    "unknown outer optimizer": ("optimizer: adam,", "optimizer: adan,", "8:", "did you mean adam"),
    "negative outer steps": ("steps: 1", "steps: -1", "8:", "-1"),
    "unknown mode": ("steps: 3", "mode: sideways\nsteps: 3", "4:7", "forward"),
    "unknown engine": ("steps: 3", "mode: {name: forward, engine: warp}\nsteps: 3", "4:", "forward_over_reverse"),
    "a group of nothing": (
        "steps: 3",
        "groups: [{parameters: ['nothing.*'], weight_decay: 0}]\nsteps: 3",
        "4:",
        "names no parameter",
    ),
    "a group fixes what is unknown": (
        "steps: 3",
        "groups: [{parameters: [biases], wd: 0}]\nsteps: 3",
        "4:",
        "weight_decay",
    ),
    "fixed twice": ("{name: sgd}", "{name: sgd, momentum: 0.5}", "7:", "keep one"),
    "per of a loss": ("  momentum:", "  label_smoothing: {initial: 0.1, per: layer}\n  momentum:", "7:", "per: model"),
    "below 0": ("{name: sgd}", "{name: sgd, weight_decay: -1}", "3:", "at least 0"),
    "outputs that do not fit the targets": ("hidden: [8]", "num_classes: 3", "", "loss"),
    "a loss's value refused": (
        "steps: 3",
        "loss: {call: torch.nn.HuberLoss, delta: wide}\nsteps: 3",
        "4:7",
        "HuberLoss",
    ),
    "a mode's name in a list": ("steps: 3", "mode: {name: [reverse]}\nsteps: 3", "4:14", "auto, forward, reverse"),
    "another recipe as a model": (
        "call: mlp",
        "call: hyperopt_cli.cli.run.run",
        "1:15",
        "not among what a recipe may call",
    ),
    "a loss that does not fit": ("steps: 3", "loss: mse\nsteps: 3", "4:", "outputs of shape [32, 10]"),
    "a data set's argument of the wrong kind": ("call: digits", "call: image_folder, root: 3", "2:", "image_folder"),
    "no such device": ("steps: 3", "device: cuda:7\nsteps: 3", "", "cuda:7"),
    "no device at all": ("steps: 3", "device: abacus\nsteps: 3", "4:", "abacus"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_bad_recipe_is_refused_at_its_place(hyperopt, tmp_path, case):
    old, new, place, word = RECIPES[case]
    assert old in GOOD
    (tmp_path / "bad.yaml").write_text(GOOD.replace(old, new))
    code, out, err = hyperopt("run", "bad.yaml")
    assert code == 2
    assert word in err
    assert (f"bad.yaml:{place}" if place else "") in err
    assert "Traceback" not in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


COMMANDS = {
    "no such recipe": (["run", "digits_lrr"], "did you mean digits_lr"),
    "no such command": (["rum", "good.yaml"], "rum"),
    "no recipe": (["run"], "RECIPE"),
    "an override without a value": (["run", "good.yaml", "steps"], "KEY=VALUE"),
    "an override of nothing": (["run", "good.yaml", "=3"], "="),
    "an unknown override": (["run", "good.yaml", "outer.step=3"], "did you mean"),
    "an override of the wrong kind": (["run", "good.yaml", "steps=soon"], "integer"),
    "an override that is no YAML": (["run", "good.yaml", "steps=[1"], "command line"),
    "an unknown mode": (["run", "good.yaml", "--mode", "backward"], "forward"),
    "an unknown device": (["run", "good.yaml", "--device", "abacus"], "abacus"),
    "an option without a value": (["run", "good.yaml", "--mode"], "--mode"),
    "an unknown option": (["run", "good.yaml", "--speed", "9"], "--speed"),
    "out is there": (["run", "good.yaml", "--out", "."], "--out"),
    "out is a file": (["run", "good.yaml", "--out", "good.yaml"], "--out"),
    "validate": (["validate", "good.yaml", "hyperparameters.lr.initial=-1"], "-1"),
    "cat": (["cat", "nothing"], "nothing"),
    "cp onto itself": (["cp", "good.yaml"], "exists"),
    "show of no run": (["show", "."], "status.json"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_line_is_refused(hyperopt, tmp_path, case):
    arguments, word = COMMANDS[case]
    (tmp_path / "good.yaml").write_text(GOOD)
    code, out, err = hyperopt(*arguments)
    assert code == 2
    assert word in err
    assert "Traceback" not in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["good.yaml"]


def test_the_good_recipe_runs(hyperopt, tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    code, out, err = hyperopt("run", "good.yaml")
    assert code == 0, err
    assert "validation loss" in out


def test_all_errors_come_at_once_in_the_order_of_the_file(hyperopt, tmp_path):
    text = GOOD.replace("call: mlp", "call: mpl").replace("steps: 3", "steps: -3").replace("initial: 0.9", "initial: 2")
    (tmp_path / "bad.yaml").write_text(text)
    _, _, err = hyperopt("run", "bad.yaml")
    assert re.findall(r"bad\.yaml:(\d+):", err) == ["1", "4", "7"]


def test_debug_shows_the_traceback(hyperopt):
    code, _, err = hyperopt("run", "nothing", "--debug")
    assert code == 2
    assert "Traceback" in err
