"""The recipes that ship with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped() -> dict[str, Path]:
    """Returns the recipes that ship, by name, in alphabetical order.

    A wheel has them in `hyperopt_cli/recipes`, a checkout in `recipes` beside the package.
    """
    folders = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")
    folder = next((folder for folder in folders if folder.is_dir() and any(folder.glob("*.yaml"))), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}
