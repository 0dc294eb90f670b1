"""What a recipe may call, and how arguments are bound."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hyperopt_cli.errors import RecipeError, UsageError
from hyperopt_cli.models import mlp
from hyperopt_cli.recipe import load
from hyperopt_cli.recipe.binding import bind
from hyperopt_cli.recipe.names import resolve
from hyperopt_cli.recipe.permitted import Kind
from tests.recipe.texts import GOOD, written


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mlp", "model"),
        ("hyperopt_cli.models.mlp", "model"),
        ("torch.nn.Linear", "model"),
        ("torch.nn.modules.linear.Linear", "model"),
        ("torchvision.models.resnet18", "model"),
        ("digits", "dataset"),
        ("mse", "loss"),
        ("torch.nn.functional.smooth_l1_loss", "loss"),
        ("torch.nn.CrossEntropyLoss", "loss"),
        ("SGD", "optimizer"),
    ],
)
def test_what_ships_and_torch_may_be_called(name: str, kind: str) -> None:
    assert callable(resolve(name, kind))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "torch.nnx.Linear",
        "torchvision.datasets.MNIST",
        "torch.nn.modules.os.system",
        "torch.nn.functional.torch.load",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.functional.warnings.warn",
        "torch.nn.functional.Callable",
        "torch.optim.optimizer.functools.partial",
        "torch.nn.Module.__subclasses__",
        "torch.nn.modules.module.Module.__init__.__globals__",
        "torch.nn.functional.cross_entropy.__globals__",
        "hyperopt_cli.models._secret",
        "hyperopt_cli.recipe.load.Path",
        "hyperopt_cli.errors",
        "hyperopt_cli",
        "torch.nn",
        "__import__",
        "eval",
        "a b",
        "torch.nn.Linear\n",
        "",
    ],
)
def test_nothing_else_may_be_called(name: str) -> None:
    with pytest.raises(UsageError):
        resolve(name, "model")


INIT = """
import os
from functools import partial, wraps
from subprocess import Popen
from torch import load
from torch.nn import Linear, Module
from hyperopt_cli.cli.run import run

def net(width): ...
size = 3
narrow = partial(net, 3)
shell = partial(os.system, "true")
anonymous = type("Anonymous", (), {"__module__": 3, "__call__": lambda self: None})()

class Touchy(type):
    @property
    def small(cls):
        raise RuntimeError("not now")

class Net(metaclass=Touchy):
    start = Popen
    os = os
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of one's own, with a function, a class, a module that fails, and something foreign."""
    folder = tmp_path / "mypackage_for_tests"
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "parts.py").write_text("class Net:\n    @classmethod\n    def small(cls): ...\n")
    (folder / "broken.py").write_text("raise SystemExit('gone')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] == folder.name]:  # left by an earlier test
        del sys.modules[module]
    return folder.name


@pytest.mark.parametrize("name", ["net", "parts.Net", "parts.Net.small", "Linear"])
def test_an_allowed_package_may_be_called(package: str, name: str) -> None:
    assert callable(resolve(f"{package}.{name}", "model", [f"{package}.*"]))


def test_nothing_is_imported_before_it_is_allowed(package: str) -> None:
    with pytest.raises(UsageError, match=rf"add --allow-import '{package}\.\*'"):
        resolve(f"{package}.net", "model", ["other.*"])
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("os.system", "leads to os, which is not among"),
        ("Popen", "leads to subprocess, which is not among"),
        ("os.path.join", "leads to os, which is not among"),
        ("load", "leads to torch.serialization, which is not among"),
        ("run", "leads to hyperopt_cli.cli.run, which is not among"),
        ("Module.apply", "can't be called as model: must be a model that ships, a subclass of torch.nn.Module"),
        ("narrow", "leads to functools, which is not among"),
        ("shell", "leads to functools, which is not among"),
        ("anonymous", "leads to an unknown module, which is not among"),
        ("Net.start", "leads to subprocess, which is not among"),
        ("Net.os.system", "leads to os, which is not among"),
        ("Net.small", "looking up small failed: RuntimeError: not now"),
        ("Net.__subclasses__", "no part private"),
        ("size", "is not callable"),
        ("nett", "has no nett; did you mean mypackage_for_tests.net?"),
        ("size.real", "neither a module nor a class"),
        ("parts", "is not callable"),
        ("broken.net", "importing mypackage_for_tests.broken failed: SystemExit: gone"),
    ],
)
def test_an_allowed_package_opens_no_other(package: str, name: str, fragment: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(f"{package}.{name}", "model", [f"{package}.*"])
    assert fragment in str(caught.value)


def test_a_package_that_is_not_installed_is_told() -> None:
    with pytest.raises(UsageError, match=r"importing nowhere_to_be_found failed: ModuleNotFoundError.*on PYTHONPATH\?"):
        resolve("nowhere_to_be_found.net", "model", ["nowhere_to_be_found.*"])


@pytest.mark.parametrize(
    ("text", "line"), [("import math\nimport numpyy\n", 2), ("def net(:\n", 1), ("x = 1\ny = x / 0\n", 2)]
)
def test_a_module_that_fails_is_told_with_the_line(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "failing_for_tests.py").write_text(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        with pytest.raises(UsageError, match=rf"raised at .*failing_for_tests\.py:{line}$"):
            resolve("failing_for_tests.net", "model", ["failing_for_tests"])


def test_a_recipe_cannot_allow_itself(tmp_path: Path, package: str) -> None:
    path = written(tmp_path, GOOD.replace("{call: mlp, hidden: [8]}", f"{{call: {package}.net, width: 3}}"))
    assert load(path, allow_import=[f"{package}.*"]).model.arguments == {"width": 3}
    with pytest.raises(RecipeError, match="unknown key"):
        load(path, ["allow_import=[mypackage_for_tests]"])


def test_all_arguments_that_do_not_fit_are_told() -> None:
    messages = [finding.message for finding in bind(mlp, {"hiden": [3], "x": 1})]
    assert [message.split(";")[0].split(".")[0] for message in messages] == [
        "unknown argument",
        "unknown argument",
        "the argument input_shape is missing",
        "the argument num_classes is missing",
    ]


def test_what_the_builder_fills_in_is_not_missing() -> None:
    assert bind(mlp, {}, {"input_shape", "num_classes"}) == []


def test_leading_arguments_cannot_be_given() -> None:
    def loss(outputs: object, targets: object, scale: float) -> None:
        del outputs, targets, scale

    findings = bind(loss, {"outputs": 1, "scale": 1}, num_leading=2)
    assert [finding.path for finding in findings] == [("outputs",)]


def test_any_name_fits_arbitrary_keywords() -> None:
    assert bind(dict, {"x": 1}) == bind(lambda **kwargs: kwargs, {"x": 1}) == []


WITHIN_THE_PACKAGES = [  # in packages that a section may call, or in hyperopt_cli, and not what that section is for
    ("hyperopt_cli.cli.run.run", "model"),
    ("hyperopt_cli.cli.run.run", "dataset"),
    ("hyperopt_cli.cli.recipes.cp", "dataset"),
    ("hyperopt_cli.run_directory.directory.RunDirectory.create", "dataset"),
    ("hyperopt_cli.recipe.names.resolve", "loss"),
    ("hyperopt_cli.optimizers.SGD", "model"),
    ("hyperopt_cli.models.mlp", "dataset"),
    ("hyperopt_cli.data.digits", "model"),
    ("hyperopt_cli.data.InMemory", "dataset"),
    ("hyperopt_cli.data.checksums.require_md5", "dataset"),
    ("hyperopt_cli.data.as_splits", "dataset"),
    ("as_splits", "dataset"),
    ("InMemory", "dataset"),
    ("hyperopt_cli.models.mlp", "optimizer"),
    ("hyperopt_cli.optimizers.sgd.itself", "optimizer"),
    ("torch.optim.SGD", "optimizer"),
    ("torch.optim.Optimizer.load_state_dict", "model"),
    ("torch.nn.Module.load_state_dict", "model"),
    ("torch.nn.Module.apply", "model"),
    ("torch.nn.Module.__subclasses__", "model"),
    ("torch.nn.Module.compile", "loss"),
    ("torch.nn.Linear", "loss"),
    ("torch.nn.functional.mse_loss", "model"),
    ("torch.nn.functional.has_torch_function", "loss"),
    ("torch.nn.functional.boolean_dispatch", "loss"),
    ("torch.nn.functional.max_pool1d", "loss"),  # from torch._jit_internal, under another module's name
    ("torch.nn.modules.module.register_module_forward_hook", "model"),
    ("torch.nn.modules.module.functools.partial", "model"),
    ("torch.nn.init.normal_", "model"),
    ("torch.nn.utils.clip_grad_norm_", "loss"),
    ("torchvision.models.get_model", "model"),
    ("torchvision.models.get_weight", "model"),
    ("torchvision.models.list_models", "model"),
    ("torchvision.models.ResNet18_Weights", "model"),
    ("torchvision.models.ResNet18_Weights.get_state_dict", "model"),
    ("torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict", "model"),
    ("torchvision.models.feature_extraction.create_feature_extractor", "model"),
    ("torchvision.models.inception.ConvNormActivation", "model"),
    ("torchvision.models.resnet18", "dataset"),
    ("torchvision.models.resnet18", "loss"),
    ("torch.nn.\uff2cinear", "model"),
    ("torch.nn.Linear\u200b", "model"),
    ("t\u043erch.nn.Linear", "model"),
    ("torch.nn." + "a" * 300, "model"),
    ("a." * 250_000 + "b", "model"),
]


@pytest.mark.parametrize(("name", "kind"), WITHIN_THE_PACKAGES)
def test_a_section_calls_only_what_it_is_for(name: str, kind: Kind) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name, kind)
    assert len(str(caught.value)) < 600


def test_a_recipe_cannot_run_another_with_leave_to_import(tmp_path: Path) -> None:
    inner = "{call: subprocess.check_output, args: 'touch gone', shell: true}"
    (tmp_path / "inner.yaml").write_text(GOOD.replace("{call: mlp, hidden: [8]}", inner))
    outer = "{call: hyperopt_cli.cli.run.run, recipe: inner.yaml, allow_import: [subprocess]}"
    with pytest.raises(RecipeError, match=r"hyperopt_cli\.cli\.run\.run is not among what a recipe may call as model"):
        load(written(tmp_path, GOOD.replace("{call: mlp, hidden: [8]}", outer)))


def test_a_name_as_long_as_a_name_may_be_is_looked_up() -> None:
    with pytest.raises(UsageError, match="has no aaa"):
        resolve("torch.nn." + "a" * (255 - len("torch.nn.")), "model")
    with pytest.raises(UsageError, match="at most 255 characters"):
        resolve("torch.nn." + "a" * (256 - len("torch.nn.")), "model")


FOLDERS = {
    "model": ("torch/nn", "torchvision/models", "hyperopt_cli/models"),
    "dataset": ("hyperopt_cli/data",),
    "loss": ("torch/nn", "hyperopt_cli/task/losses.py"),
    "optimizer": ("hyperopt_cli/optimizers",),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS)
def test_everything_that_can_be_reached_stands_in_the_folders_of_its_kind(kind: Kind) -> None:
    """The oracle is the file that an object's source stands in; the check itself goes by the object's module."""
    reached = 0
    for name in sorted({*names_below("torch.nn"), *names_below("torchvision.models"), *names_below("hyperopt_cli")}):
        try:
            found = resolve(name, kind)
        except UsageError:
            continue
        reached += 1
        source = inspect.getsourcefile(inspect.unwrap(found)) or ""
        assert any(f"/{folder}" in source for folder in FOLDERS[kind]), (name, source)
        assert kind != "model" or inspect.isclass(found) or "weights" in dir(found) or "model" in source, name
    assert reached >= {"model": 300, "dataset": 7, "loss": 50, "optimizer": 4}[kind]


def names_below(package: str) -> Iterator[str]:
    """Names of what the modules of a package hold, and one level into what lies in these, wherever it comes from."""
    folder = importlib.import_module(package).__path__
    for module in [package, *(found.name for found in pkgutil.walk_packages(folder, package + "."))]:
        for name, value in list(vars(importlib.import_module(module)).items()):
            yield f"{module}.{name}"
            if isinstance(value, ModuleType) or inspect.isclass(value):
                yield from (f"{module}.{name}.{inner}" for inner in list(vars(value)))


HYPEROPT = "from hyperopt_cli.cli import main; main()"


def test_a_file_of_the_working_directory_does_not_stand_in_for_an_installed_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def model(input_shape):\n    ...\n")
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong torch')\n")
    written(tmp_path, GOOD.replace("{call: mlp, hidden: [8]}", "{call: mine.model}"))
    command = [sys.executable, "-P", "-c", HYPEROPT, "validate", "recipe.yaml", "--allow-import", "mine.*"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
