"""What is left of a recipe without its mistakes, so that those which only a whole recipe shows are found with them.

What is wrong is taken out, and a stand-in takes the place of a section that a recipe can't do without. A mistake that
is seen only then counts if it does not lie where something was taken out.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from hyperopt_cli.recipe.positions import Finding, KeyPath
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.validate import validate

_ROUNDS = 8
_STAND_INS: dict[str, Any] = {
    "model": {"call": "mlp"},
    "dataset": {"call": "digits"},
    "optimizer": {"name": "sgd"},
    "steps": 10_000,
    "hyperparameters": {"lr": 0.1},
}


class Rest(NamedTuple):
    """A recipe that is valid but for what only its callables know.

    Attributes:
        recipe: what is left of the recipe.
        gone: the paths that were taken out.
        own: sections among loss and optimizer of which a callable of the user's own was taken out, so that nobody knows
            what its arguments are.
        bare: the same for names of what ships.
    """

    recipe: Recipe
    gone: frozenset[KeyPath]
    own: frozenset[str]
    bare: frozenset[str]

    def touches(self, path: KeyPath) -> bool:
        """Returns whether a mistake at `path` may come from what was taken out of its section or hyperparameter."""
        if path[0] == "groups" and any(gone[0] == "model" for gone in self.gone):  # they name its parameters
            return True
        if ("steps",) in self.gone and "schedule" in path:
            return True
        parts = [gone[:2] if gone[0] == "hyperparameters" else gone[:1] for gone in self.gone]
        return any(path[: len(part)] == part for part in parts)


def rest_of(data: dict[str, Any], findings: Sequence[Finding]) -> tuple[Rest | None, list[Finding]]:
    """Returns what is left of `data` without what `findings` are about, if it can be told, and what is wrong there."""
    left, gone, more = copy.deepcopy(data), set[KeyPath](), list[Finding]()
    waiting = list(findings)
    for _ in range(_ROUNDS):
        before = len(gone)
        gone |= {_taken_out(left, finding.path) for finding in waiting if finding.path}
        recipe, waiting = validate(left)
        if recipe is not None:
            sections = {path[0] for path in gone if path[1:] in ((), ("call",), ("name",))} & {"loss", "optimizer"}
            own = frozenset(str(section) for section in sections if _is_own(data.get(str(section))))
            bare = frozenset(map(str, sections)) - own
            return Rest(recipe, frozenset(gone), own, bare), more
        more += [finding for finding in waiting if not _follows(finding.path, gone)]
        if len(gone) == before and before and all(not finding.path for finding in waiting):
            break
    return None, more


def _taken_out(data: dict[str, Any], path: KeyPath) -> KeyPath:
    """Takes out what is at `path`, or where nothing is, around it; returns what was taken out."""
    whole = next((n for n, key in enumerate(path) if isinstance(key, int)), len(path))  # lists go as a whole
    for length in range(whole, 1, -1):
        holder: Any = data
        for key in path[: length - 1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and path[length - 1] in holder:
            del holder[path[length - 1]]
            return path[:length]
    section = str(path[0])
    data.pop(section, None)
    if section in _STAND_INS:
        data[section] = copy.deepcopy(_STAND_INS[section])
    return path[:1]


def _follows(path: KeyPath, gone: set[KeyPath]) -> bool:
    """Returns whether a mistake may come from what was taken out: it lies within that, or in what held it."""
    if not path or ("steps",) in gone:
        return True
    return any(path == out[: len(path)] or path[: len(out)] == out for out in gone)


def _is_own(section: object) -> bool:
    name = section.get("call") if isinstance(section, dict) else section
    return isinstance(name, str) and "." in name
