"""How an override that is being typed goes on: the keys that a recipe may have, and what may be their values.

A shell puts a space behind the one candidate that there is, which would end `KEY=` before its value; so a key that is
alone comes with its values, and a section that is alone with its keys.
"""

import json
import re
from typing import Any

from hyperopt_cli.recipe.json_schema import allowed_keys, at, branches
from hyperopt_cli.recipe.positions import KeyPath

_PLAIN = re.compile(r"[\w.+/~-]+")  # what no shell takes for anything else


def key_completions(recipe: Any, typed: str) -> list[str]:
    """Returns what `typed`, the beginning of a dotted key, may become: `KEY=` of a value, `KEY.` of a section.

    Args:
        recipe: plain data, whose own keys (names of hyperparameters, arguments of callables) are known too.
        typed: up to the end of the word.

    >>> key_completions({}, "optimizer.na")
    ['optimizer.name=', 'optimizer.name=null', 'optimizer.name=sgd', 'optimizer.name=adam', 'optimizer.name=adamw', \
'optimizer.name=rmsprop']
    """
    path = tuple(typed.split(".")[:-1])
    inside = _value(recipe, path)
    own = inside if isinstance(inside, dict) else {}
    candidates: list[str] = []
    for key in dict.fromkeys([*allowed_keys(path), *own]):
        dotted = ".".join(map(str, (*path, key)))
        value = _value(recipe, (*path, key))
        is_section = [each.get("type") == "object" for each in branches((*path, key))] or [isinstance(value, dict)]
        # both for a section that has a shorthand
        candidates += [f"{dotted}="] * (not all(is_section)) + [f"{dotted}."] * any(is_section)
    found = [candidate for candidate in candidates if candidate.startswith(typed)]
    if len(found) != 1:
        return found
    if found[0].endswith("."):
        return key_completions(recipe, found[0])
    return [found[0], *(found[0] + value for value in value_completions(recipe, found[0][:-1]))]


def value_completions(recipe: Any, key: str) -> list[str]:
    """Returns values of a dotted key: the recipe's own, the default, and all where they can be listed.

    >>> value_completions({"precision": "bf16"}, "precision")
    ['bf16', 'float32', 'float64', 'tf32']
    """
    path = tuple(key.split("."))
    schema = at(path)
    values = [value] if (value := _value(recipe, path)) is not None else []
    values += [schema["default"]] if "default" in schema else []
    for branch in branches(path):
        values += branch.get("enum", [branch["const"]] if "const" in branch else [])
        values += [True, False] if branch.get("type") == "boolean" else []
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return list(dict.fromkeys(text for text in texts if _PLAIN.fullmatch(text)))


def _value(recipe: Any, path: KeyPath) -> Any:
    for key in path:
        recipe = recipe.get(key) if isinstance(recipe, dict) else None
    return recipe
