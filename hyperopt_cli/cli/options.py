"""Arguments that several commands share."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.cli import completion
from hyperopt_cli.errors import UsageError
from hyperopt_cli.registry import MODES, OUTER

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
SEARCHES = tuple(name for name, method in OUTER.items() if "trials" in method.settings)
Search = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(SEARCHES)}: search by plain runs, a baseline under the same recipe.",
        metavar="METHOD",
        autocompletion=lambda: list(SEARCHES),
    ),
]
Trials = Annotated[int | None, typer.Option(help="Of a search: plain runs, that of the start among them.", metavar="N")]
SearchTied = Annotated[
    bool | None, typer.Option("--search-tied", help="Of a search: one number for all entries of a hyperparameter.")
]
_SHORT_FOR = {"search": "outer.optimizer", "trials": "outer.trials", "search_tied": "outer.tied"}
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

    `--search` also takes away what the recipe sets for another method of the outer loop.

    Raises:
        UsageError: an override sets the same key, or there is no such search.
    """
    given = {name: value for name, value in options.items() if value is not None}
    keys = {name: _SHORT_FOR.get(name, name) for name in given}
    for name, key in keys.items():
        for override in overrides or ():
            if override.partition("=")[0] in (key, f"{key}.name"):
                raise UsageError(f"--{name.replace('_', '-')} {given[name]}: got {override} too; give one of them")
    taken_away: list[str] = []
    if (search := given.get("search")) is not None:
        if search not in SEARCHES:
            raise UsageError(f"--search: got {search}; must be one of {', '.join(SEARCHES)}")
        others = dict.fromkeys(key for method in OUTER.values() for key in method.settings)
        taken_away = [f"outer.{key}=null" for key in others if key not in OUTER[str(search)].settings]
    set_to = {key: str(given[name]).lower() if given[name] is True else given[name] for name, key in keys.items()}
    return [*taken_away, *(f"{key}={value}" for key, value in set_to.items()), *(overrides or [])]


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
