"""Names in a recipe to callables, and their arguments to signatures, before anything is called.

A recipe may come from a stranger, so that a name reaches only what is defined in `ALLOWED`, or in what the person at
the command line adds to it. Every module and class on the way is held to that as well as the object itself, and nothing
outside is imported.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any, Literal

from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe.positions import Finding
from hyperopt_cli.recipe.wording import did_you_mean, shown

Kind = Literal["model", "dataset", "loss", "optimizer"]

ALLOWED = ("hyperopt_cli", "torch.nn", "torch.optim", "torchvision.models")
_SHIPPED = {"model": "hyperopt_cli.models", "dataset": "hyperopt_cli.data", "optimizer": "hyperopt_cli.optimizers"}
_LOSSES = {"cross_entropy": "hyperopt_cli.losses.cross_entropy", "mse": "hyperopt_cli.losses.mse"}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def resolve(name: str, kind: Kind, allow: Sequence[str] = ()) -> Callable[..., Any]:
    """Returns the callable that a recipe calls `name`.

    Args:
        name: a short name of what ships (`mlp`), or a dotted one (`torch.nn.Linear`).
        kind: the section of the recipe, which decides what a short name means.
        allow: patterns of further modules, as `--allow-import` takes them: `mypackage.*` (and `mypackage` itself).

    Raises:
        UsageError: no such name, not allowed, not callable, or its module fails to import.
    """
    if not all(part.isidentifier() and not part.startswith("_") for part in name.split(".")):
        raise UsageError(
            f"got {shown(name)}; must be a short name or a dotted one such as torch.nn.Linear, no part private"
        )
    found = _walk(name, allow) if "." in name else _short(name, kind, allow)
    if not callable(found):
        raise UsageError(f"{name} is not callable; name a function or a class")
    _check_origin(name, getattr(found, "__module__", None), allow)
    return found


def bind(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    filled: Iterable[str] = (),
    num_leading: int = 0,
    known: Sequence[str] = (),
) -> list[Finding]:
    """Returns what is wrong with calling `function` by these arguments: unknown ones, missing ones.

    Args:
        function: what will be called.
        arguments: its keyword arguments.
        filled: names that the builder fills in where the signature has them.
        num_leading: how many leading positional arguments the builder passes: a loss's outputs and targets.
        known: keys of the section that are no arguments, to be named among what is allowed.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature: nothing to check against
        return []
    leading = [parameter for parameter in parameters if parameter.kind in _POSITIONAL][:num_leading]
    rest = [parameter for parameter in parameters if parameter not in leading]
    return _unknown(rest, arguments, known) + _missing(rest, set(arguments) | set(filled))


def device_problem(name: str) -> str:
    """Returns why torch knows no device called `name`; empty if it does. Whether the device is there isn't asked."""
    import torch

    try:
        torch.device(name)
    except RuntimeError:
        return f"got {shown(name)}; must be auto, or a device of torch such as cpu, cuda or cuda:1"
    return ""


def _unknown(parameters: list[inspect.Parameter], arguments: dict[str, Any], known: Sequence[str]) -> list[Finding]:
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return []
    names = [*(parameter.name for parameter in parameters if parameter.kind in _KEYWORD), *known]
    allowed = ", ".join(names) or "no arguments"
    return [
        Finding((key,), f"unknown argument{did_you_mean(key, names) or '.'} Allowed here: {allowed}", at_key=True)
        for key in arguments
        if key not in names
    ]


def _missing(parameters: list[inspect.Parameter], given: set[str]) -> list[Finding]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        Finding((), f"the argument {parameter.name} is missing; add {parameter.name}: VALUE")
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in variadic
        and parameter.name not in given
    ]


def _short(name: str, kind: Kind, allow: Sequence[str]) -> object:
    if kind == "loss":
        if name not in _LOSSES:
            raise UsageError(_no_short_name(name, kind, list(_LOSSES)))
        return _walk(_LOSSES[name], allow)
    package = importlib.import_module(_SHIPPED[kind])
    found = getattr(package, name, None)
    if isinstance(found, ModuleType):  # a module bears the name of the function that it holds
        found = getattr(found, name, None)
    if found is None:
        raise UsageError(_no_short_name(name, kind, _public_callables(package)))
    return found


def _no_short_name(name: str, kind: Kind, names: list[str]) -> str:
    close, known = did_you_mean(name, names) or ";", ", ".join(names)
    return f"no {kind} is called {shown(name)}{close} Short names: {known}; anything else is package.module.name"


def _public_callables(package: ModuleType) -> list[str]:
    names = (name for name in package.__all__ if name.islower() and name != "as_splits")
    return sorted(name for name in names if callable(getattr(package, name, None)))


def _walk(name: str, allow: Sequence[str]) -> object:
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts))]
    root = next((prefix for prefix in prefixes if _is_allowed(prefix, allow)), None)
    if root is None:
        raise UsageError(_refusal(f"{name} is", parts[0]))
    found: object = _import(root)
    for part in parts[root.count(".") + 1 :]:
        _check_step(name, found, allow)
        found = _attribute(found, part, allow)
    return found


def _check_step(name: str, found: object, allow: Sequence[str]) -> None:
    if isinstance(found, ModuleType):
        _check_origin(name, found.__name__, allow)
    elif inspect.isclass(found):
        _check_origin(name, found.__module__, allow)
    else:
        raise UsageError(f"{name} leads through an object that is neither a module nor a class; name it directly")


def _attribute(holder: object, part: str, allow: Sequence[str]) -> object:
    missing = object()
    found = getattr(holder, part, missing)
    if found is not missing:
        return found
    if (
        isinstance(holder, ModuleType)
        and hasattr(holder, "__path__")
        and _is_allowed(f"{holder.__name__}.{part}", allow)
    ):
        return _import(f"{holder.__name__}.{part}")
    raise UsageError(_nothing_called(part, holder))


def _nothing_called(part: str, holder: object) -> str:
    name = getattr(holder, "__name__", "it")
    close = difflib.get_close_matches(part, [other for other in dir(holder) if not other.startswith("_")], n=1)
    return f"{name} has no {part}" + (f"; did you mean {name}.{close[0]}?" if close else "; check the spelling")


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a foreign module does when imported, the recipe names it
        holder, _, part = module.rpartition(".")
        if isinstance(error, ModuleNotFoundError) and error.name == module and holder:
            raise UsageError(_nothing_called(part, importlib.import_module(holder))) from error
        raise UsageError(
            f"importing {module} failed: {type(error).__name__}: {error}; is it installed, or its folder on PYTHONPATH?"
        ) from error


def _check_origin(name: str, module: str | None, allow: Sequence[str]) -> None:
    if module is None or not _is_allowed(module, allow):
        raise UsageError(_refusal(f"{name} leads to {module or 'an unknown module'}, which is", module or "PACKAGE"))


def _is_allowed(module: str, allow: Sequence[str]) -> bool:
    if any(module == package or module.startswith(package + ".") for package in ALLOWED):
        return True
    return any(fnmatchcase(module, pattern) or module == pattern.removesuffix(".*") for pattern in allow)


def _refusal(subject: str, module: str) -> str:
    allowed = ", ".join(ALLOWED)
    return f"{subject} not among what a recipe may call ({allowed}); if you trust it, add --allow-import '{module}.*'"
