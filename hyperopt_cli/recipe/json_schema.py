"""The recipe's JSON schema: for editors, and for saying what is allowed at a key."""

from functools import cache
from typing import Any

from hyperopt_cli.recipe.positions import KeyPath
from hyperopt_cli.recipe.schema import Recipe

Schema = dict[str, Any]


def json_schema() -> Schema:
    """Returns the JSON schema (draft 2020-12) of a recipe, shorthands included, as yaml-language-server takes it."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "hyperopt recipe"}


def allowed_keys(path: KeyPath) -> list[str]:
    """Returns the keys that the mapping at `path` may have."""
    return [key for branch in branches(path) for key in branch.get("properties", {})]


def branches(path: KeyPath) -> list[Schema]:
    """Returns the schemas of which the value at `path` may fit any, null left out; none where no such key is known."""
    return _branches(at(path))


def expected(path: KeyPath) -> str:
    """Returns what the value at `path` may be, in words.

    >>> expected(("steps",)), expected(("outer", "optimizer"))
    ('an integer of at least 1', 'one of adam, sgd, sign')
    """
    return " or ".join(dict.fromkeys(map(_words, branches(path))))


@cache
def _root() -> Schema:
    return Recipe.model_json_schema()


def at(path: KeyPath) -> Schema:
    """Returns the schema of the value at `path`; empty where no such key is known."""
    schema = _root()
    for key in path:
        steps = (_step(branch, key) for branch in _branches(schema))
        schema = next((step for step in steps if step is not None), {})
    return schema


def _step(schema: Schema, key: str | int) -> Schema | None:
    if isinstance(key, int):
        return schema.get("items")
    beyond = schema.get("additionalProperties")
    return schema.get("properties", {}).get(key) or (beyond if isinstance(beyond, dict) else None)


def _branches(schema: Schema) -> list[Schema]:
    if "$ref" in schema:
        return _branches(_root()["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in schema:
        return [branch for option in schema["anyOf"] for branch in _branches(option)]
    return [] if schema.get("type") == "null" else [schema]


def _words(schema: Schema) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        return "a list, each item " + " or ".join(map(_words, _branches(schema["items"])))
    if kind == "object":
        required = ", ".join(schema.get("required", ()))
        return f"a mapping with {required}" if required else "a mapping"
    names = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "a string"}
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    limits = " and ".join(f"{word} {schema[key]:g}" for key, word in words.items() if key in schema)
    return names.get(str(kind), "a plain value") + (f" {limits}" if limits else "")
