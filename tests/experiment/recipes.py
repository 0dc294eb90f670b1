"""A small recipe that can be changed in one place, and built."""

import copy
from pathlib import Path
from typing import Any

import yaml

from hyperopt_cli.experiment import Experiment, build
from hyperopt_cli.recipe.load import load
from hyperopt_cli.recipe.schema import Recipe

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
    """`DIGITS` with sections replaced (None: left out), written as a file and loaded."""
    data = {name: value for name, value in {**copy.deepcopy(DIGITS), **changed}.items() if value is not None}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return load(path, allow_import=allow)


def built(folder: Path, allow: tuple[str, ...] = (), **changed: Any) -> Experiment:
    """The experiment of it."""
    return build(recipe_of(folder, allow, **changed), allow)
