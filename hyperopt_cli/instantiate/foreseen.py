"""What can be said of a recipe's model before its data set is opened: arguments that it lacks, parameters that it has.

The builder fills in `input_shape` and `num_classes` from the data set where the model takes them. For data sets that
ship both are known. One of the user's own has to be called for it, which `hyperopt validate` does where the answer
hangs on it, and nothing else.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import torch
from torch import nn

from hyperopt_cli.data.splits import as_splits
from hyperopt_cli.errors import Issue
from hyperopt_cli.instantiate.experiment import seeded
from hyperopt_cli.recipe.binding import bind
from hyperopt_cli.recipe.names import resolve
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.registry import DATA_SETS


class Facts(NamedTuple):
    """What the builder fills in of a data set where a model takes it.

    Attributes:
        input_shape: of one example; None where it is not known.
        num_classes: None for targets that are numbers.
    """

    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None


# names of parameters hang on neither where model and data set ship
_ANY = Facts((3, 32, 32), 10)


def filled(function: Callable[..., Any], facts: Facts, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a model: those of the recipe, and what it takes of the data set's facts.

    Args:
        function: the model's callable.
        facts: what is known of the data set.
        given: the recipe's arguments, which win.
    """
    accepted = {*inspect.signature(function).parameters}
    if function.__module__.startswith("torchvision.models"):
        accepted.add("num_classes")
    known = {name: value for name, value in facts._asdict().items() if name in accepted and value is not None}
    return known | given


def lacking(function: Callable[..., Any], facts: Facts, arguments: dict[str, Any]) -> list[Issue]:
    """Returns an issue for each argument that the model needs and nobody gives, or is given and does not take."""
    issues = []
    for found in bind(function, arguments):
        is_number = "num_classes" in found.message.split() and facts.num_classes is None
        why = " (targets are numbers, so that the data set has no classes to count)" if is_number else ""
        issues.append(Issue(("model", *found.path), found.message + why, at_key=found.at_key))
    return issues


def foreseen(recipe: Recipe, allow: Sequence[str], may_open: bool) -> tuple[nn.Module | None, list[Issue]]:
    """Returns the model on torch's meta device, without values, if groups need its parameters, and what it lacks.

    Args:
        recipe: the recipe of the model.
        allow: patterns of modules that may be called.
        may_open: whether a data set of the user's own may be called where the answer hangs on it.
    """
    function = resolve(recipe.model.call, "model", allow)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None, []
    taken = [name for name in Facts._fields if name in parameters and name not in recipe.model.arguments]
    required = [name for name in taken if parameters[name].default is inspect.Parameter.empty]
    facts = _facts(recipe, allow, may_open and bool(required or (taken and recipe.groups)))
    if facts is None:
        ships = function.__module__.startswith(("hyperopt_cli.", "torchvision."))
        facts = _ANY if ships or not taken else None
    if facts is None:
        return None, []
    arguments = filled(function, facts, recipe.model.arguments)
    if issues := lacking(function, facts, arguments):
        return None, issues
    if not recipe.groups or arguments.get("weights") is not None or arguments.get("pretrained"):
        return None, []  # nobody asks for its parameters, or making it would load weights
    try:
        with seeded(0, torch.device("cpu")), torch.device("meta"), redirect_stdout(StringIO()):
            made = function(**arguments)
    except Exception:  # it can't be made without values
        return None, []
    return (made if isinstance(made, nn.Module) else None), []


def _facts(recipe: Recipe, allow: Sequence[str], may_open: bool) -> Facts | None:
    """Returns the facts of the data set, which is opened only if it may be; None where they stay unknown."""
    if recipe.dataset is None:
        return Facts()
    name = recipe.dataset.call.removeprefix("hyperopt_cli.data.")
    if name in DATA_SETS and DATA_SETS[name].input_shape is not None:
        return Facts(DATA_SETS[name].input_shape, DATA_SETS[name].num_classes)
    function = resolve(recipe.dataset.call, "dataset", allow)
    if not may_open or function.__module__.startswith("hyperopt_cli."):
        return None
    try:
        splits = as_splits(function(**recipe.dataset.arguments))
    except Exception:  # it may lie on another machine; a run says what is wrong with it
        return None
    return Facts(splits.input_shape, splits.num_classes)
