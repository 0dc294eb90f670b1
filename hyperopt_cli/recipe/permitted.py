"""What a recipe may call without leave: what the registry names, and of torch's packages one form of thing.

A package is more than models or losses: it has functions that open files, or run other recipes with leave to import
anything. So it is not enough that something is defined in one; it has to be of the form that the section is for.
"""

import importlib
import inspect
import sys
from types import FunctionType
from typing import Literal

from hyperopt_cli.registry import DATA_SETS, LOSSES, MODELS, OPTIMIZERS, load

Kind = Literal["model", "dataset", "loss", "optimizer"]

PACKAGES: dict[Kind, tuple[str, ...]] = {
    "model": ("hyperopt_cli.models", "torch.nn", "torchvision.models"),
    "dataset": ("hyperopt_cli.data",),
    "loss": ("hyperopt_cli.task", "torch.nn"),
    "optimizer": ("hyperopt_cli.optimizers",),
}
# short name -> where what it names is
NAMES: dict[Kind, dict[str, str]] = {
    "model": {name: entry.path for name, entry in MODELS.items()},
    "dataset": {name: entry.path for name, entry in DATA_SETS.items()},
    "loss": {name: entry.path for name, entry in LOSSES.items()},
    "optimizer": {entry.path.partition(":")[2]: entry.path for entry in OPTIMIZERS.values()},  # as classes
}
_FORMS: dict[Kind, str] = {
    "model": "a model that ships, a subclass of torch.nn.Module, or a model that torchvision lists",
    "dataset": "a data set that ships",
    "loss": "a loss that ships, a function of torch.nn.functional, or a loss of torch.nn such as torch.nn.HuberLoss",
    "optimizer": "an inner optimizer that ships",
}


def wrong_form(found: object, kind: Kind) -> str:
    """Returns what `found`, of one of the packages, should have been; empty if a recipe may call it."""
    if kind == "model":
        from torch.nn import Module

        fits = issubclass(found, Module) if inspect.isclass(found) else _ships(found, kind) or _is_listed(found)
    elif kind == "dataset":
        fits = _ships(found, kind)
    elif kind == "optimizer":
        base = importlib.import_module("hyperopt_cli.optimizers").InnerOptimizer
        fits = inspect.isclass(found) and issubclass(found, base)
    else:
        from torch.nn import functional
        from torch.nn.modules.loss import _Loss

        # where it was compiled: torch writes other modules into __module__ of what it generates
        module = str(found.__globals__.get("__name__")) if isinstance(found, FunctionType) else ""
        is_function = module == functional.__name__ or module.startswith("hyperopt_cli.task.")
        fits = issubclass(found, _Loss) if inspect.isclass(found) else is_function
    return "" if fits else f"must be {_FORMS[kind]}"


def _ships(found: object, kind: Kind) -> bool:
    origin = f"{getattr(found, '__module__', '')}:{getattr(found, '__qualname__', '')}"
    return any(origin == path and found is load(path) for path in NAMES[kind].values())


def _is_listed(found: object) -> bool:
    """Returns whether torchvision lists it as a model; functions that register, look up or download one are not."""
    if "torchvision" not in sys.modules:  # nothing is of a package that was never imported
        return False
    from torchvision.models import get_model_builder, list_models

    name = getattr(found, "__name__", "")
    return any(found is get_model_builder(listed) for listed in list_models(include=f"*{name}"))
