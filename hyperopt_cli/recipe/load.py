"""A recipe's file, or its name, and overrides to a `Recipe` that is known to be callable."""

from collections.abc import Sequence
from pathlib import Path

from hyperopt_cli.errors import Issue, RecipeError
from hyperopt_cli.recipe.callables import check_callables
from hyperopt_cli.recipe.document import MAX_BYTES, Document, DocumentError, parse, position_of
from hyperopt_cli.recipe.overrides import override
from hyperopt_cli.recipe.positions import Positions
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.shipped import shipped
from hyperopt_cli.recipe.validate import validate
from hyperopt_cli.recipe.wording import did_you_mean


def load(recipe: str | Path, overrides: Sequence[str] = (), allow_import: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and validates a recipe, and looks up every callable that it names.

    Args:
        recipe: a path, or the name of a recipe that ships.
        overrides: `KEY=VALUE` each, applied in order.
        allow_import: patterns of modules that may be called beside those that always may, such as `mypackage.*`.

    Raises:
        RecipeError: everything that is wrong, in the order of the file, each with its position.
    """
    document = _read(find(recipe), str(recipe))
    findings = list(document.findings)
    for text in overrides:
        findings += override(document, text)
    loaded, problems = validate(document.data)
    findings += problems
    if isinstance(document.data, dict):
        findings += check_callables(document.data, allow_import)
    positions = Positions(document.marks)
    if loaded is None or findings:
        raise positions.error(findings)
    return loaded.attached(positions)


def find(recipe: str | Path) -> Path:
    """Returns the file of a recipe that is given by path, or by the name of one that ships.

    Raises:
        RecipeError: there is neither.
    """
    path, ships = Path(recipe).expanduser(), shipped()
    if _is_file(path):
        return path
    name = str(recipe).removesuffix(".yaml")
    if name in ships:
        return ships[name]
    if path.exists():
        raise RecipeError([Issue((), "is no regular file; give the path of a recipe", ascii_name(recipe))])
    close = did_you_mean(name, ships) or ";"
    names = ", ".join(ships) or "none"
    raise RecipeError(
        [Issue((), f"no such file, and no recipe that ships{close} Recipes that ship: {names}", ascii_name(recipe))]
    )


def ascii_name(recipe: str | Path) -> str:
    """Returns the name of a recipe for a message, readable whatever bytes it holds."""
    return str(recipe) if str(recipe).isprintable() else ascii(str(recipe))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def _read(path: Path, name: str) -> Document:
    source = ascii_name(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        return parse(_decoded(content, source), source)
    except OSError as error:
        raise RecipeError([Issue((), f"can't be read: {error.strerror}", source)]) from error
    except DocumentError as error:
        raise RecipeError([Issue((), error.message, str(error.position))]) from error


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        raise DocumentError("not UTF-8; save the recipe as UTF-8", position_of(before, len(before), source)) from error
