"""A small recipe that can be changed in one place, and built."""

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperopt_cli.instantiate import Experiment, build
from hyperopt_cli.recipe.load import load
from hyperopt_cli.recipe.schema import Recipe

_numbered = itertools.count()
DIGITS: dict[str, Any] = {
    "model": {"call": "mlp", "hidden": [5], "activation": "tanh"},
    "dataset": {"call": "digits", "batch_size": 16, "outer_batch_size": 100},
    "optimizer": {"name": "sgd"},
    "steps": 6,
    "hyperparameters": {"lr": {"initial": 0.1, "schedule": {"windows": 3}}, "momentum": 0.9},
    "precision": "float64",
    "device": "cpu",
}


def recipe_of(folder: Path, allow: tuple[str, ...] = (), **changed: Any) -> Recipe:
    """`DIGITS` with sections replaced (None: left out), tuned by adam in forward mode, written as a file and loaded."""
    data = {name: value for name, value in {**copy.deepcopy(DIGITS), **changed}.items() if value is not None}
    data.setdefault("mode", "forward")
    data["outer"] = {"optimizer": "adam", **data.get("outer", {})}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return load(path, allow_import=allow)


def built(folder: Path, allow: tuple[str, ...] = (), **changed: Any) -> Experiment:
    """The experiment of it."""
    return build(recipe_of(folder, allow, **changed), allow)


def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Experiment]]:
    """Builds the experiment of a module of one's own; to be made a fixture of.

    What is made takes the module's code, the names in it of the model, the data set and the loss (`own.NAME`, or
    anything that a recipe takes), further keys of `dataset`, and sections of the recipe.
    """
    name = f"own_parts_{next(_numbered)}"
    monkeypatch.syspath_prepend(tmp_path)

    def make(code: str, model: str, data: str, loss: Any, dataset: dict[str, Any] | None = None, **changed: Any) -> Any:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        if isinstance(loss, str) and loss.startswith("own."):
            loss = {"call": loss.replace("own", name, 1)}
        sections = {
            "model": {"call": f"{name}.{model}"},
            "dataset": {"call": f"{name}.{data}", "batch_size": 8, "normalize": False, **(dataset or {})},
            "loss": loss,
            "hyperparameters": {"lr": 0.05},
            "mode": "forward",
            **changed,
        }
        return built(tmp_path, (name,), **sections)

    yield make
    sys.modules.pop(name, None)
