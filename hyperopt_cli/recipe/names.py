"""Names in a recipe to callables, before anything is called.

A recipe may come from a stranger, so that a name reaches only what its section may call (`permitted.py`), or what is
defined in modules that the person at the command line adds to it. Every module and class on the way is held to that as
well as the object itself, and nothing outside is imported.
"""

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from hyperopt_cli.errors import MissingPackageError, UsageError, needing
from hyperopt_cli.recipe.limits import MAX_KEY
from hyperopt_cli.recipe.permitted import NAMES, PACKAGES, Kind, wrong_form
from hyperopt_cli.recipe.wording import did_you_mean, shown
from hyperopt_cli.registry import load


class NoLeaveError(UsageError):
    """A recipe names what may be called only with leave.

    Attributes:
        pattern: what `--allow-import` would have to be given.
    """

    def __init__(self, message: str, pattern: str) -> None:
        self.pattern = pattern
        super().__init__(message)


def has_leave(module: object, allow: Sequence[str]) -> bool:
    """Returns whether the person at the command line vouches for the module, by one of the patterns."""
    return isinstance(module, str) and any(
        fnmatchcase(module, pattern) or module == pattern.removesuffix(".*") for pattern in allow
    )


def resolve(name: str, kind: Kind, allow: Sequence[str] = ()) -> Callable[..., Any]:
    """Returns the callable that a recipe calls `name`.

    Args:
        name: a short name of what ships (`mlp`), or a dotted one (`torch.nn.Linear`).
        kind: the section of the recipe, which decides what a short name means.
        allow: patterns of further modules, as `--allow-import` takes them: `mypackage.*` (and `mypackage` itself).

    Raises:
        UsageError: no such name, not allowed, not callable, or its module fails to import.
    """
    if len(name) > MAX_KEY or not all(part.isidentifier() and not part.startswith("_") for part in name.split(".")):
        raise UsageError(
            f"got {shown(name)}; must be a short name or a dotted one such as torch.nn.Linear, no part private, "
            f"at most {MAX_KEY} characters"
        )
    search = _Search(name, kind, tuple(allow))
    package, _, short = name.rpartition(".")
    if not package and name not in NAMES[kind]:
        close, known = did_you_mean(name, NAMES[kind]) or ";", ", ".join(NAMES[kind])
        raise UsageError(
            f"no {kind} is called {shown(name)}{close} Short names: {known}; anything else is package.module.name"
        )
    of_what_ships = short in NAMES[kind] and package in ("", PACKAGES[kind][0])
    found: object = load(NAMES[kind][short]) if of_what_ships else search.walk(name)
    if not callable(found):
        raise UsageError(f"{name} is not callable; name a function or a class")
    search.check_called(found)
    return found


def device_problem(name: str) -> str:
    """Returns why torch knows no device called `name`; empty if it does. Whether the device is there isn't asked."""
    import torch

    try:
        torch.device(name)
    except RuntimeError:
        return f"got {shown(name)}; must be auto, or a device of torch such as cpu, cuda or cuda:1"
    return ""


@dataclass(frozen=True)
class _Search:
    """Goes from a name to an object, and refuses modules and objects that it may not pass or end at."""

    name: str
    kind: Kind
    allow: tuple[str, ...]

    def walk(self, name: str) -> object:
        parts = name.split(".")
        prefixes = [".".join(parts[:length]) for length in range(1, len(parts))]
        root = next((prefix for prefix in prefixes if self._may_import(prefix)), None)
        if root is None:
            raise self._refusal(f"{name} is", parts[0])
        found: object = _import(root)
        for part in parts[root.count(".") + 1 :]:
            if isinstance(found, ModuleType):
                self._check_origin(found.__name__)
            elif inspect.isclass(found):
                self._check_origin(found.__module__)
            else:
                raise UsageError(
                    f"{self.name} leads through an object that is neither a module nor a class; name it directly"
                )
            found = self._attribute(found, part)
        return found

    def check_called(self, found: object) -> None:
        """Refuses what is defined elsewhere, or is not of the form that may be called without leave."""
        module = getattr(found, "__module__", None)
        self._check_origin(module)
        if not has_leave(module, self.allow) and (problem := wrong_form(found, self.kind)):
            raise UsageError(f"{self.name} can't be called as {self.kind}: {problem}")

    def _check_origin(self, module: object) -> None:
        if not isinstance(module, str) or not self._may_import(module):
            known = module if isinstance(module, str) else ""
            leads = f"{self.name} leads to {known or 'an unknown module'}, which is"
            raise self._refusal(leads, known)

    def _attribute(self, holder: object, part: str) -> object:
        missing = object()
        try:
            found = getattr(holder, part, missing)
        except Exception as error:  # a module or a metaclass may run code of its own here
            raise UsageError(f"{self.name}: looking up {part} failed: {type(error).__name__}: {error}") from error
        if found is not missing:
            return found
        if isinstance(holder, ModuleType) and hasattr(holder, "__path__"):
            submodule = f"{holder.__name__}.{part}"
            if self._may_import(submodule):
                return _import(submodule)
        raise UsageError(_nothing_called(part, holder))

    def _may_import(self, module: str) -> bool:
        shipped = any(module == package or module.startswith(package + ".") for package in PACKAGES[self.kind])
        return shipped or has_leave(module, self.allow)

    def _refusal(self, subject: str, module: str) -> UsageError:
        called = f"{subject} not among what a recipe may call as {self.kind} ({', '.join(PACKAGES[self.kind])})"
        if not module:
            return UsageError(f"{called}; name what is defined in a module")
        pattern = f"{module}.*"
        return NoLeaveError(f"{called}; if you trust it, add --allow-import '{pattern}'", pattern)


def _nothing_called(part: str, holder: object) -> str:
    name = getattr(holder, "__name__", "it")
    close = difflib.get_close_matches(part, [other for other in dir(holder) if not other.startswith("_")], n=1)
    return f"{name} has no {part}" + (f"; did you mean {name}.{close[0]}?" if close else "; check the spelling")


def _import(module: str) -> ModuleType:
    try:
        with needing(module):
            return importlib.import_module(module)
    except MissingPackageError:
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign module does when imported, the recipe names it
        holder, _, part = module.rpartition(".")
        if isinstance(error, ModuleNotFoundError) and error.name == module and holder:
            raise UsageError(_nothing_called(part, importlib.import_module(holder))) from error
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            advice = "is it installed, or its folder on PYTHONPATH?"
        else:
            advice = f"raised at {_place(error)}"
        raise UsageError(f"importing {module} failed: {type(error).__name__}: {error}; {advice}") from error


def _place(error: BaseException) -> str:
    """Returns the file and line at which a foreign module has failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
