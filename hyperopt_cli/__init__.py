"""Hyperparameters of a PyTorch training run, tuned by their exact gradient.

The public names are loaded on first use (PEP 562), so that importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hyperopt_cli import errors, optimizers
    from hyperopt_cli.modes import (
        Auto,
        Forward,
        Hypergradient,
        Measurements,
        Plan,
        Reverse,
        Reversible,
        hypergradient,
        plan,
    )
    from hyperopt_cli.problem import Chunked, Problem

_IN_MODES = (
    "Auto",
    "Forward",
    "Hypergradient",
    "Measurements",
    "Plan",
    "Reverse",
    "Reversible",
    "hypergradient",
    "plan",
)
_HOME = {
    **dict.fromkeys(("Chunked", "Problem"), "hyperopt_cli.problem"),
    **dict.fromkeys(_IN_MODES, "hyperopt_cli.modes"),
}

__all__ = [
    "Auto",
    "Chunked",
    "Forward",
    "Hypergradient",
    "Measurements",
    "Plan",
    "Problem",
    "Reverse",
    "Reversible",
    "errors",
    "hypergradient",
    "optimizers",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in {"errors", "optimizers"}:
        return import_module(f"hyperopt_cli.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hyperopt_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
