"""Arguments that several commands share."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.cli import completion
from hyperopt_cli.errors import UsageError
from hyperopt_cli.registry import MODES

if TYPE_CHECKING:
    from hyperopt_cli.recipe import Recipe

RecipeName = Annotated[
    str,
    typer.Argument(
        help="A path, or the name of a recipe that ships.", metavar="RECIPE", autocompletion=completion.recipes
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Overrides, e.g. hyperparameters.lr.initial=0.1", metavar="KEY=VALUE", autocompletion=completion.overrides
    ),
]
Out = Annotated[Path | None, typer.Option(help="A new directory; runs/RECIPE-TIME-ID by default.", metavar="DIR")]
ModeName = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(MODES)}; the recipe's by default.",
        metavar="MODE",
        autocompletion=completion.modes,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ...; a GPU where there is one by default.",
        metavar="DEVICE",
        autocompletion=lambda: ["auto", "cpu", "cuda"],
    ),
]
ALLOW_IMPORT = "HYPEROPT_ALLOW_IMPORT"


def _with_environment(patterns: list[str] | None) -> list[str]:
    """Returns the patterns of the command line and those of the environment, the only two that can give leave."""
    of_environment = re.split(r"[\s,:]+", os.environ.get(ALLOW_IMPORT, ""))
    return list(dict.fromkeys([*(patterns or ()), *filter(None, of_environment)]))


AllowImport = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        callback=_with_environment,
        help="Modules that the recipe may call besides the built-in ones, e.g. 'mypackage.*'; may be given several "
        f"times, and {ALLOW_IMPORT} in the environment holds further ones.",
    ),
]


def with_options(overrides: list[str] | None, **options: object) -> list[str]:
    """Returns the overrides, with those that an option is short for: `mode=reverse` for `--mode reverse`.

    Raises:
        UsageError: an override sets the same key.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        for override in overrides or ():
            if override.partition("=")[0] in (key, f"{key}.name"):
                raise UsageError(f"--{key} {given[key]}: got {override} too; give one of them")
    return [*(f"{key}={value}" for key, value in given.items()), *(overrides or [])]


def load_recipe(name: str, overrides: list[str] | None, allow_import: list[str] | None) -> "Recipe":
    """Returns the recipe, validated; where imports are allowed, those of the working directory are found too.

    The working directory is searched last: a file there called `torch.py` is not what `import torch` finds.
    """
    from hyperopt_cli.recipe import load
    from hyperopt_cli.recipe.load import UnsoundError

    if allow_import and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return load(name, overrides or (), allow_import or ())
    except UnsoundError as error:
        if error.rest is None:
            raise
        from hyperopt_cli.instantiate import check_rest

        check_rest(error.rest, error, allow_import or ())
        raise
