"""Every mistake is told once, at its position, with what is allowed."""

from importlib import import_module
from pathlib import Path

import pytest

from hyperopt_cli.errors import RecipeError
from hyperopt_cli.recipe import load
from tests.recipe.texts import GOOD, without, written

MISTAKES = [  # top-level key, its text, line and column, fragment of the message
    ("model", "model: mlp", "8:8", "model: got 'mlp'; must be a mapping with call"),
    ("model", "model: {hidden: [8]}", "8:8", "model.call: missing; must be a string"),
    ("model", "model: {call: 3}", "8:15", "model.call: got 3; must be a string"),
    ("model", "model: {call: mpl}", "8:15", "no model is called 'mpl'; did you mean mlp?"),
    ("model", "model: {call: mlp, hiden: [8]}", "8:20", "unknown argument; did you mean hidden? Allowed here: "),
    ("model", "model: {call: torch.nn.Linear}", "8:8", "the argument in_features is missing"),
    ("model", "model: {call: torch.nn.Linaer}", "8:15", "has no Linaer; did you mean torch.nn.Linear?"),
    ("model", "model: {call: a..b}", "8:15", "no part private"),
    ("dataset", "dataset: {call: digits, batch_size: 0}", "8:37", "got 0; must be an integer of at least 1"),
    ("dataset", "dataset: {call: digits, batch_size: '3'}", "8:37", "must be an integer of at least 1, or all"),
    ("dataset", "dataset: {call: digits, batch_size: al}", "8:37", "got 'al'; did you mean all?; must be an integer"),
    ("dataset", "dataset: {call: digits, chunk_size: 0}", "8:37", "got 0; must be an integer of at least 1"),
    ("dataset", "dataset: {call: digits, validation_fraction: 1}", "8:46", "must be a number above 0 and below 1"),
    ("dataset", "dataset: {call: digits, flip: no}", "8:31", "got 'no'; must be true or false"),
    ("dataset", "dataset: {call: digits, residence: gpu}", "8:36", "must be one of auto, device, stream"),
    ("dataset", "dataset: {call: digits, batchsize: 3}", "8:25", "unknown argument"),
    ("dataset", "", "1:1", "dataset: missing; give {call: NAME, ...}"),
    ("loss", "loss: cross_entrop", "9:7", "did you mean cross_entropy?; must be one of cross_entropy, mse, output"),
    ("loss", "loss: {call: cross_entropy, smoothing: 1}", "9:29", "unknown argument; did you mean label_smoothing?"),
    ("loss", "loss: {call: output, x: 1}", "9:22", "unknown argument. Allowed here: no arguments"),
    ("optimizer", "optimizer: sgd", "8:12", "got 'sgd'; must be a mapping"),
    (
        "optimizer",
        "optimizer: {name: sdg}",
        "8:19",
        "got 'sdg'; did you mean sgd?; must be one of sgd, adam, adamw, rmsprop",
    ),
    ("optimizer", "optimizer: {nesterov: true}", "8:12", "got neither name nor call"),
    ("optimizer", "optimizer: {name: sgd, call: SGD}", "8:12", "got both name and call"),
    ("optimizer", "optimizer: {name: adam, betas: 0.9}", "8:25", "unknown argument; did you mean beta"),
    ("optimizer", "optimizer: {name: sgd, dampening: much}", "8:35", "got 'much'; must be a finite number"),
    ("steps", "steps: -3", "8:8", "got -3; must be an integer of at least 1"),
    ("steps", "steps: true", "8:8", "got true; must be an integer of at least 1"),
    ("steps", "steps: 1e3", "8:8", "got 1000.0; must be an integer of at least 1"),
    ("steps", "", "1:1", "steps: missing; must be an integer of at least 1"),
    ("hyperparameters", "", "1:1", "hyperparameters: missing; must be a mapping"),
    ("hyperparameters", "hyperparameters: {}", "5:18", "nothing is tuned"),
    ("hyperparameters", "hyperparameters: {lr: {value: 1}}", "5:18", "nothing is tuned"),
    ("hyperparameters", "hyperparameters: {lr: fast}", "5:23", "lr: got 'fast'; must be a finite number, or a mapping"),
    ("hyperparameters", "hyperparameters: {lr: .nan}", "5:23", "must be a finite number, or a mapping"),
    ("hyperparameters", "hyperparameters: {lr: {}}", "5:23", "got neither initial nor value"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, value: 1}}", "5:23", "got both initial and value"),
    ("hyperparameters", "hyperparameters: {lr: {initial: x}}", "5:33", "lr.initial: got 'x'; must be a finite number"),
    ("hyperparameters", "hyperparameters: {lr: {initial: []}}", "5:33", "got an empty list"),
    ("hyperparameters", "hyperparameters: {lr: {initial: [1, x]}}", "5:37", "lr.initial.1: got 'x'"),
    ("hyperparameters", "hyperparameters: {lr: {initial: [1, 2]}}", "5:33", "constant starts from one number"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, transfrom: log}}", "5:36", "did you mean transform?"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, transform: exp}}", "5:47", "one of log, logit, softplus"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, bounds: [2, 1]}}", "5:44", "must be smaller"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, bounds: 3}}", "5:44", "two finite numbers, [low, high]"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 5, bounds: [1, 2]}}", "5:33", "lie within bounds, [1, 2]"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, per: row}}", "5:41", "one of model, layer, tensor"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, schedule: windws}}", "5:46", "must be constant, per_step"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, schedule: windows}}", "5:46", "write {windows: 7}"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, schedule: {window: 2}}}", "5:47", "did you mean windows?"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, schedule: {knots: 1}}}", "5:54", "integer of at least 2"),
    ("hyperparameters", "hyperparameters: {lr: {initial: 1, schedule: {}}}", "5:46", "got no kind"),
    (
        "hyperparameters",
        "hyperparameters: {lr: {initial: 1, schedule: {windows: 2, knots: 3}}}",
        "5:46",
        "got windows and knots; give exactly one",
    ),
    (
        "hyperparameters",
        "hyperparameters: {lr: {initial: [1, 2, 3], schedule: {windows: 2}}}",
        "5:33",
        "got 3 numbers; must be 2, one for each of the windows",
    ),
    (
        "hyperparameters",
        "hyperparameters: {lr: {initial: [1, 2], schedule: per_step}}",
        "5:33",
        "got 2 numbers; must be 20, one for each of the steps",
    ),
    (
        "hyperparameters",
        "hyperparameters: {lr: {initial: 1, schedule: {warmup_cosine: {warmpu: 1}}}}",
        "5:63",
        "schedule.warmup_cosine.warmpu: unknown key; did you mean warmup?",
    ),
    (
        "hyperparameters",
        "hyperparameters: {lr: {initial: 1, schedule: {one_cycle: {final: [1]}}}}",
        "5:66",
        "schedule.one_cycle.final: got [1]",
    ),
    (
        "hyperparameters",
        "hyperparameters: {lr: {initial: 1, schedule: {step_decay: {milestones: [0.5, 0.2]}}}}",
        "5:78",
        "got 0.2 after 0.5; milestones must ascend",
    ),
    (
        "hyperparameters",
        "hyperparameters: {lr: {initial: 1, schedule: {step_decay: {milestones: [50]}}}}",
        "5:73",
        "got 50; must be a number above 0 and below 1",
    ),
    ("groups", "groups: {lr: 1}", "9:9", "must be a list"),
    ("groups", "groups: [{parameters: norms, l2: 0}]", "9:23", "got 'norms'; must be a list, each item a string"),
    ("groups", "groups: [{parameters: [norms], l2: none}]", "9:36", "groups.0.l2: got 'none'; must be a finite number"),
    ("groups", "groups: [{parameters: [norms]}]", "9:10", "fixes no hyperparameter"),
    ("outer", "outer: {optimizer: lbfg}", "9:20", "got 'lbfg'; did you mean lbfgs?; must be one of"),
    ("outer", "outer: {lr: 0}", "9:13", "got 0; must be a number above 0"),
    ("outer", "outer: {momentum: 0.9}", "9:19", "the outer optimizer auto takes no momentum; only sgd does"),
    ("outer", "outer: {replicas: 0}", "9:19", "must be an integer of at least 1"),
    ("mode", "mode: backward", "9:7", "must be one of auto, forward, reverse, reversible"),
    ("mode", "mode: {name: [reverse]}", "9:14", "got ['reverse']; must be one of auto, forward, reverse, reversible"),
    ("mode", "mode: {name: {a: b}}", "9:14", "got {'a': 'b'}; must be one of auto, forward, reverse, reversible"),
    ("mode", "mode: {name: reverse, columns_at_once: 2}", "9:40", "the mode reverse takes no columns_at_once"),
    ("mode", "mode: {name: forward, columns_at_once: 0}", "9:40", "must be an integer of at least 1"),
    ("mode", "mode: {name: forward, slots: 3}", "9:30", "the mode forward takes no slots; only reverse does"),
    ("mode", "mode: {name: forward, window: 3}", "9:31", "the mode forward takes no window; only reverse does"),
    ("mode", "mode: {name: reverse, slots: 0}", "9:30", "slots: got 0; must be all, auto, an integer of at least 1"),
    ("mode", "mode: {name: reverse, slots: 2.5}", "9:30", "got 2.5; must be all, auto, an integer of at least 1, or a"),
    ("mode", "mode: {name: reverse, slots: true}", "9:30", "got true; must be all, auto, an integer"),
    ("mode", "mode: {name: reverse, slots: some}", "9:30", "got 'some'; must be all, auto, an integer"),
    ("mode", "mode: {name: reverse, slots: atuo}", "9:30", "got 'atuo'; did you mean auto?; must be all, auto, an"),
    ("mode", "mode: {name: reverse, slots: [3]}", "9:30", "or a mapping such as {device: 20, host: 200, disk: 0}"),
    ("mode", "mode: {name: reverse, slots: {gpu: 3}}", "9:31", "gpu: unknown key. Allowed here: device, host, disk"),
    ("mode", "mode: {name: reverse, slots: {devise: 3}}", "9:31", "unknown key; did you mean device? Allowed here: "),
    ("mode", "mode: {name: reverse, slots: {device: -1}}", "9:39", "device: got -1; must be an integer of at least 0"),
    ("mode", "mode: {name: reverse, slots: {host: x}}", "9:37", "host: got 'x'; must be an integer of at least 0"),
    ("mode", "mode: {name: reverse, slots: {disk: 0}}", "9:30", "got no slot; w_0 needs one: give device, host"),
    ("mode", "mode: {name: reversible, compile: maybe}", "9:35", "got 'maybe'; must be auto, true or false"),
    ("mode", "mode: {name: reverse, window: 0}", "9:31", "window: got 0; must be an integer of at least 1"),
    ("mode", "mode: {name: reverse, path: curved}", "9:29", "path: got 'curved'; must be linear"),
    ("mode", "mode: {name: reverse, path: linear, slots: 3}", "9:29", "give one of path and slots"),
    ("precision", "precision: float16", "9:12", "must be one of float64, float32, tf32, bf16"),
    ("device", "device: gpu", "9:9", "got 'gpu'; must be auto, or a device of torch"),
    ("seed", "seed: -1", "9:7", "got -1; must be an integer of at least 0"),
    ("sede", "sede: 1", "9:1", "sede: unknown key; did you mean seed? Allowed here: model, "),
]


def mistakes_in(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    path = written(folder, text)
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return str(path), [str(issue) for issue in caught.value.issues]


@pytest.mark.parametrize(("key", "line", "position", "fragment"), MISTAKES)
def test_a_mistake_is_told_once_at_its_position(
    tmp_path: Path, key: str, line: str, position: str, fragment: str
) -> None:
    path, issues = mistakes_in(tmp_path, without(key) + line + "\n")
    if line == "model: {call: torch.nn.Linear}":  # two of its arguments are missing
        issues.pop()
    assert len(issues) == 1, issues
    assert issues[0].startswith(f"{path}:{position}: ")
    assert fragment in issues[0]


BAD_OVERRIDES = [
    ("steps", "got 'steps'; an override is KEY=VALUE"),
    ("=3", "an override is KEY=VALUE"),
    ("outer..lr=3", "an override is KEY=VALUE"),
    ("\udc80=3", "an override is KEY=VALUE"),
    (".".join("a" * 10_000) + "=1", "a key has at most 39 parts of at most 255 characters"),
    ("a" * 256 + "=1", "a key has at most 39 parts of at most 255 characters"),
    ("groups." + ".".join("a" * 30) + "=" + "[" * 10 + "]" * 10, "would lie deeper than 40 levels"),
    ("steps=" + "9" * 30, "command line: steps: got " + "9" * 30 + "; an integer lies within +-(2^63 - 1)"),
    ("seed=" + "1" * 101, "command line: seed: got a number of 101 characters; at most 100"),
    ("model.hidden=" + "[" * 41 + "]" * 41, "nested deeper than 40 levels"),
    ("model.hidden=" + "0" * 1_000_001, "longer than 1000000 bytes"),
    ("outer={<<: {lr: 1}}", "would merge mappings"),
    ("steps=[", "command line: steps: the value '[' is not valid YAML"),
    ("steps=", "command line: steps: got null; must be an integer of at least 1"),
    ("steps=0", "command line: steps: got 0; must be an integer of at least 1"),
    ("steps.x=0", "command line: steps.x: can't be set, because steps is 20, not a mapping"),
    ("outer.lr=-1", "command line: outer.lr: got -1; must be a number above 0"),
    ("outer.step=1", "command line: outer.step: unknown key; did you mean steps?"),
    ("model.hidden.3=1", "command line: model.hidden.3: got '3'; model.hidden is a list of 1"),
    ("model.call=os.system", "command line: model.call: os.system is not among what a recipe may call"),
    ("model.call=logistic", "model.hidden: unknown argument"),
    ("hyperparameters.lr.bounds=[1, 2]", "hyperparameters.lr.initial: got 0.1; must lie within bounds"),
    ("hyperparameters.momentum.bounds=[1, 2]", "hyperparameters.momentum.initial: got 0.9; must lie within bounds"),
    ("outer={lr: 1, lr: 2}", "command line: outer.lr: given twice"),
    ("mode.columns_at_once=x", "command line: mode.columns_at_once: got 'x'; must be an integer of at least 1"),
    ("groups.0.lr=1", "command line: groups: got {'0': {'lr': 1}}; must be a list"),
]


@pytest.mark.parametrize(("override", "fragment"), BAD_OVERRIDES)
def test_a_bad_override_is_told_once(tmp_path: Path, override: str, fragment: str) -> None:
    _, issues = mistakes_in(tmp_path, GOOD, (override,))
    assert len(issues) == 1, issues
    assert fragment in issues[0]


def test_rivals_on_the_command_line_are_an_error(tmp_path: Path) -> None:
    overrides = ("hyperparameters.lr.value=1", "hyperparameters.lr.initial=1")
    _, issues = mistakes_in(tmp_path, GOOD, overrides)
    assert "got both initial and value" in issues[0]


def test_all_mistakes_are_told_in_the_order_of_the_file_and_the_command_line_last(tmp_path: Path) -> None:
    text = GOOD.replace("hidden", "hiden").replace("20", "0").replace("log", "exp").replace("sgd", "adam")
    path, issues = mistakes_in(tmp_path, text, ("seed=-1", "steps"))
    expected = [f"{path}:1:20", f"{path}:3:25", f"{path}:4:8", f"{path}:6:33", "command line", "command line"]
    assert [issue.split(": ")[0] for issue in issues] == expected


@pytest.mark.parametrize(("text", "given"), [("", "null"), ("- 1", "[1]"), ("mlp", "'mlp'")])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str, given: str) -> None:
    path, issues = mistakes_in(tmp_path, text, ("steps=3",))
    assert issues[0].startswith(f"{path}:1:1: got {given}; a recipe is a mapping with the keys model, ")


def test_a_syntax_error_has_a_position(tmp_path: Path) -> None:
    path, issues = mistakes_in(tmp_path, "steps: 1\nmodel: {call: mlp\n")
    assert issues[0].startswith(f"{path}:3:1: not valid YAML")


def test_a_file_that_is_not_utf8_has_a_position(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"steps: 1\n# caf\xe9\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:2:6: not UTF-8"):
        load(path)


def test_a_name_that_is_neither_file_nor_shipped_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ships = {"mnist_mlp": Path("mnist_mlp.yaml")}
    monkeypatch.setattr(import_module("hyperopt_cli.recipe.load"), "shipped", lambda: ships)
    with pytest.raises(RecipeError, match=r"mnist_mpl: no such file.*did you mean mnist_mlp\?"):
        load("mnist_mpl")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is no regular file"):
        load(tmp_path)
