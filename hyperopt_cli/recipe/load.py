"""A recipe's file, or its name, and overrides to a `Recipe` that is known to be callable."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hyperopt_cli.errors import Issue, RecipeError
from hyperopt_cli.recipe.callables import check_callables
from hyperopt_cli.recipe.document import DocumentError, parse, position_of
from hyperopt_cli.recipe.limits import MAX_BYTES, excess
from hyperopt_cli.recipe.overrides import override
from hyperopt_cli.recipe.positions import Finding, Position, Positions
from hyperopt_cli.recipe.rest import Rest, rest_of
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.shipped import shipped
from hyperopt_cli.recipe.validate import validate
from hyperopt_cli.recipe.wording import did_you_mean


class UnsoundError(RecipeError):
    """A recipe does not hold together.

    Attributes:
        rest: what is left of it without its mistakes; None where that can't be told.
    """

    rest: Rest | None = None


def load(recipe: str | Path, overrides: Sequence[str] = (), allow_import: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and validates a recipe, and looks up every callable that it names.

    Args:
        recipe: a path, or the name of a recipe that ships.
        overrides: `KEY=VALUE` each, applied in order.
        allow_import: patterns of modules that may be called beside those that always may, such as `mypackage.*`.

    Raises:
        RecipeError: everything that is wrong, in the order of the file, each with its position. An `UnsoundError` has
            the rest of the recipe, in which more may be wrong.
    """
    path, name = find(recipe), str(recipe)
    try:
        document = parse(read_text(path, name), ascii_name(name))
    except DocumentError as error:
        raise RecipeError([Issue((), error.message, str(error.position))]) from error
    findings = list(document.findings)
    for text in overrides:
        findings += override(document, text)
    known = {finding.path for finding in findings}
    loaded, problems = validate(document.data)
    findings += [problem for problem in problems if problem.path not in known]
    if loaded is not None and (problem := excess(loaded.model_dump(), loaded.to_yaml())):
        findings.append(Finding((), problem))
    if isinstance(document.data, dict):
        findings += check_callables(document.data, allow_import)
    positions = Positions(document.marks)
    if loaded is not None and not findings:
        return loaded.attached(positions)
    rest, more = rest_of(document.data, findings) if isinstance(document.data, dict) else (None, [])
    unsound = UnsoundError(positions.error([*findings, *more]).issues)
    unsound.rest = None if rest is None else rest._replace(recipe=rest.recipe.attached(positions))
    raise unsound


def find(recipe: str | Path) -> Path:
    """Returns the file of a recipe that is given by path, or by the name of one that ships.

    Raises:
        RecipeError: there is neither.
    """
    path, ships = Path(recipe), shipped()
    with suppress(RuntimeError):  # ~someone, whom the system does not know
        path = path.expanduser()
    if _answers(path.is_file):
        return path
    name = str(recipe).removesuffix(".yaml")
    if name in ships:
        return ships[name]
    if _answers(path.exists):
        raise RecipeError([Issue((), "is no regular file; give the path of a recipe", ascii_name(recipe))])
    close = did_you_mean(name, ships) or ";"
    names = ", ".join(ships) or "none"
    raise RecipeError(
        [Issue((), f"no such file, and no recipe that ships{close} Recipes that ship: {names}", ascii_name(recipe))]
    )


def ascii_name(recipe: str | Path) -> str:
    """Returns the name of a recipe for a message, readable whatever bytes it holds."""
    return str(recipe) if str(recipe).isprintable() else ascii(str(recipe))


def read_text(path: Path, name: str) -> str:
    """Returns what is in the file of the recipe called `name`.

    Raises:
        RecipeError: it can't be read, is too long, or is not UTF-8.
    """
    source = ascii_name(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError([Issue((), f"can't be read: {error.strerror}", source)]) from error
    if len(content) > MAX_BYTES:
        where = str(Position(source, 1, 1))
        raise RecipeError([Issue((), f"longer than {MAX_BYTES} bytes; a recipe is a page", where)])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        where = str(position_of(before, len(before), source))
        raise RecipeError([Issue((), "not UTF-8; save the recipe as UTF-8", where)]) from error


def _answers(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):  # a name too long or with a null byte, a folder that may not be looked into
        return False
