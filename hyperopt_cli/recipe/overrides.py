"""`KEY=VALUE` on the command line: set into a recipe's data before it is validated."""

from typing import Any

from hyperopt_cli.recipe.document import Document, DocumentError, parse
from hyperopt_cli.recipe.limits import MAX_DEPTH, MAX_KEY
from hyperopt_cli.recipe.positions import COMMAND_LINE, Finding, KeyPath, Mark
from hyperopt_cli.recipe.wording import shown

_MARK = Mark(COMMAND_LINE, COMMAND_LINE)


class _CannotSet(Exception):
    """The override doesn't fit the data that is there."""


def override(document: Document, text: str) -> list[Finding]:
    """Sets one `KEY=VALUE` into `document`, and returns what is wrong with it.

    KEY is dotted, with numbers for items of lists; VALUE is YAML. Shorthands on the way are spelled out: with
    `lr: 0.1` in the file, `hyperparameters.lr.transform=log` makes it `{initial: 0.1, transform: log}`.
    """
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or not key.isprintable():
        message = f"got {shown(text)}; an override is KEY=VALUE with a dotted key, such as outer.lr=0.1"
        return [Finding((), message, position=COMMAND_LINE)]
    if len(parts) >= MAX_DEPTH or max(map(len, parts)) > MAX_KEY:
        message = f"got {shown(text)}; a key has at most {MAX_DEPTH - 1} parts of at most {MAX_KEY} characters"
        return [Finding((), message, position=COMMAND_LINE)]
    try:
        given = parse(value, "value")
        if given.findings:
            return [finding._replace(path=(*parts, *finding.path), position=COMMAND_LINE) for finding in given.findings]
        _set(document, parts, given)
    except DocumentError as error:
        return [Finding(tuple(parts), f"the value {shown(value)} is {error.message}", position=COMMAND_LINE)]
    except _CannotSet as error:
        return [Finding(tuple(parts), str(error), position=COMMAND_LINE)]
    return []


def _set(document: Document, parts: list[str], given: Document) -> None:
    if not isinstance(document.data, dict):
        raise _CannotSet("can't be set, because the recipe is not a mapping")
    if len(parts) + max(map(len, given.marks)) >= MAX_DEPTH:
        raise _CannotSet(f"can't be set, because the value would lie deeper than {MAX_DEPTH} levels")
    path: KeyPath = ()
    holder: Any = document.data
    for part in parts[:-1]:
        key = _key(holder, part, path)
        _drop_rivals(document, holder, path, key)
        path = (*path, key)
        holder[key] = _opened(holder[key] if isinstance(key, int) else holder.get(key), path)
        document.marks.setdefault(path, _MARK)
        holder = holder[key]
    key = _key(holder, parts[-1], path)
    _drop_rivals(document, holder, path, key)
    _forget(document, (*path, key))
    holder[key] = given.data
    document.marks.update({(*path, key, *inner): _MARK for inner in given.marks})


def _key(holder: Any, part: str, path: KeyPath) -> str | int:
    if isinstance(holder, dict):
        return part
    if not (part.isascii() and part.isdigit() and len(part) < 9 and int(part) < len(holder)):
        raise _CannotSet(f"got {part!r}; {_dotted(path)} is a list of {len(holder)}, so give an index below that")
    return int(part)


def _opened(value: Any, path: KeyPath) -> dict[str, Any] | list[Any]:
    """Returns the mapping or list at `path`, a shorthand spelled out."""
    if isinstance(value, dict | list):
        return value
    if value is None:
        return {}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match path, value:
        case ("mode",), str():
            return {"name": value}
        case ("loss",), str():
            return {"call": value}
        case ("hyperparameters", _, "schedule"), str():
            return {value: {}}
        case ((("hyperparameters", _) | ("hyperparameters", _, "schedule", _, _)), _) if is_number:
            return {"initial": value}
    raise _CannotSet(f"can't be set, because {_dotted(path)} is {shown(value)}, not a mapping")


def _drop_rivals(document: Document, holder: Any, path: KeyPath, key: str | int) -> None:
    """Removes what the file says instead of `key`; rivals that are both on the command line stay, as an error."""
    if not isinstance(holder, dict):
        return
    rivals: set[str] = set()
    match path:
        case ("hyperparameters", _, "schedule"):
            rivals = set(holder)
        case ("hyperparameters", _) | ("hyperparameters", _, "schedule", _, _) if key in ("initial", "value"):
            rivals = {"initial", "value"}
        case ("optimizer",) if key in ("name", "call"):
            rivals = {"name", "call"}
    for rival in [other for other in holder if other in rivals and other != key]:
        if document.marks.get((*path, rival), document.marks.get(path)) != _MARK:
            del holder[rival]
            _forget(document, (*path, rival))


def _forget(document: Document, path: KeyPath) -> None:
    for known in [known for known in document.marks if known[: len(path)] == path]:
        del document.marks[known]


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
