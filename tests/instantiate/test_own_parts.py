"""Models, data, losses and optimizers from a user's module, and models of torchvision."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli import hypergradient
from hyperopt_cli.errors import HyperoptError, RecipeError
from hyperopt_cli.instantiate import build
from tests.instantiate.recipes import built, recipe_of

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hyperopt_cli.optimizers import InnerOptimizer


def model(input_shape, width=4):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, 1))


def not_a_model(input_shape):
    return 3


def line(num=50):
    x = torch.linspace(-1, 1, num)[:, None]
    return TensorDataset(x, x[:, 0] ** 2)


def huber(outputs, targets, width=1.0):
    away = outputs.reshape(targets.shape) - targets
    return (width**2 * ((1 + (away / width) ** 2).sqrt() - 1)).mean()


@dataclass(frozen=True)
class Saturated(InnerOptimizer):
    elementwise: ClassVar[bool] = True
    lr: float = 0.1
    width: float = 1.0

    def update(self, params, slots, grads, hyper, step):
        new = {}
        for name, w in params.items():
            a = self.arguments(hyper, name, w)
            new[name] = w - a.lr * torch.tanh(grads[name])
        return new, slots
"""
numbered = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of its own for each test."""
    name = f"own_parts_{next(numbered)}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def own(module: str, **changed: Any) -> dict[str, Any]:
    return {
        "model": {"call": f"{module}.model", "width": 3},
        "dataset": {"call": f"{module}.line", "batch_size": 8},
        "loss": {"call": f"{module}.huber"},
        "optimizer": {"call": f"{module}.Saturated", "width": 0.5},
        "hyperparameters": {"lr": 0.1},
        **changed,
    }


def test_everything_may_come_from_a_module_that_is_allowed(tmp_path: Path, module: str) -> None:
    experiment = built(tmp_path, (f"{module}",), **own(module))
    hyper = experiment.space.natural(experiment.space.initial())
    forward, reverse = (hypergradient(experiment.problem(0), hyper, mode) for mode in ("forward", "reverse"))
    torch.testing.assert_close(forward.grad, reverse.grad, rtol=1e-10, atol=1e-13)
    assert float(forward.grad["lr"]) != 0.0


def test_a_regression_has_a_test_figure_only_with_a_test_split(tmp_path: Path, module: str) -> None:
    experiment = built(tmp_path, (f"{module}",), **own(module))
    assert experiment.data is not None
    assert experiment.data.num_classes is None
    assert experiment.test({}, 0) is None


def test_an_argument_of_an_own_loss_can_be_tuned_where_the_optimizer_has_none_of_that_name(
    tmp_path: Path, module: str
) -> None:
    changed = own(module, optimizer={"name": "sgd"}, hyperparameters={"lr": 0.1, "width": 0.7})
    experiment = built(tmp_path, (module,), **changed)
    hyper = experiment.space.natural(experiment.space.initial())
    forward, reverse = (hypergradient(experiment.problem(0), hyper, mode) for mode in ("forward", "reverse"))
    assert float(forward.grad["width"]) != 0.0
    torch.testing.assert_close(forward.grad, reverse.grad, rtol=1e-10, atol=1e-13)


def test_a_module_that_is_not_allowed_is_not_imported(tmp_path: Path, module: str) -> None:
    with pytest.raises(HyperoptError, match="allow-import"):
        recipe_of(tmp_path, **own(module))
    assert module not in sys.modules


def test_what_returns_no_model_is_refused(tmp_path: Path, module: str) -> None:
    recipe = recipe_of(tmp_path, (module,), **own(module, model={"call": f"{module}.not_a_model"}))
    with pytest.raises(RecipeError, match=r"not_a_model returned a int; must be nn\.Module"):
        build(recipe, (module,))


def test_what_returns_no_optimizer_is_refused(tmp_path: Path, module: str) -> None:
    recipe = recipe_of(tmp_path, (module,), **own(module, optimizer={"call": f"{module}.line"}))
    with pytest.raises(RecipeError, match=r"returned a TensorDataset; an inner optimizer is a subclass of"):
        build(recipe, (module,))


@pytest.mark.slow
def test_a_residual_network_of_torchvision_is_differentiated(tmp_path: Path) -> None:
    experiment = built(
        tmp_path,
        model={"call": "torchvision.models.resnet18", "num_classes": 10},
        dataset={"call": "synthetic", "num_examples": 20, "image_shape": [3, 32, 32], "batch_size": 4},
        hyperparameters={"lr": 0.01},
        steps=2,
    )
    hyper = experiment.space.natural(experiment.space.initial())
    forward, reverse = (hypergradient(experiment.problem(0), hyper, mode) for mode in ("forward", "reverse"))
    assert forward.grad["lr"].isfinite()
    torch.testing.assert_close(forward.grad, reverse.grad, rtol=1e-8, atol=0)
