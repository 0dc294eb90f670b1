"""What a recipe may call, and how arguments are bound."""

import sys
from pathlib import Path

import pytest

from hyperopt_cli.errors import RecipeError, UsageError
from hyperopt_cli.models import mlp
from hyperopt_cli.recipe import load
from hyperopt_cli.recipe.names import bind, resolve
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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of one's own, with a function, a class, a module that fails, and something foreign."""
    folder = tmp_path / "mypackage_for_tests"
    folder.mkdir()
    (folder / "__init__.py").write_text("import os\nfrom subprocess import Popen\ndef net(width): ...\nsize = 3\n")
    (folder / "parts.py").write_text("class Net:\n    @classmethod\n    def small(cls): ...\n")
    (folder / "broken.py").write_text("raise SystemExit('gone')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] == folder.name]:  # left by an earlier test
        del sys.modules[module]
    return folder.name


@pytest.mark.parametrize("name", ["net", "parts.Net", "parts.Net.small"])
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
    with pytest.raises(UsageError, match="importing nowhere_to_be_found failed: ModuleNotFoundError"):
        resolve("nowhere_to_be_found.net", "model", ["nowhere_to_be_found.*"])


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
