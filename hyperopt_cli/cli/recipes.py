"""`hyperopt ls`, `cat`, `cp` and `schema`: the recipes that ship, and what a recipe may say."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperopt_cli.cli.options import RecipeName
from hyperopt_cli.errors import UsageError
from hyperopt_cli.registry import DATA_SETS, ENGINES, LOSSES, MODELS, MODES, OPTIMIZERS, OUTER

KINDS: dict[str, dict[str, Any]] = {
    "modes": MODES,
    "optimizers": OPTIMIZERS,
    "outer": OUTER,
    "models": MODELS,
    "datasets": DATA_SETS,
    "losses": LOSSES,
    "engines": {name: entry for name, entry in ENGINES.items() if entry.taken != "by bench hvp"},
}


def ls(
    kind: Annotated[
        str,
        typer.Argument(
            help=f"What to list: recipes, {', '.join(KINDS)}.",
            metavar="KIND",
            autocompletion=lambda: ["recipes", *KINDS],
        ),
    ] = "recipes",
) -> None:
    """List the recipes that ship, or what a recipe may name: modes, methods of the outer loop, and so on.

    Example: hyperopt ls modes
    """
    from hyperopt_cli.recipe import shipped
    from hyperopt_cli.recipe.wording import did_you_mean

    if kind != "recipes" and kind not in KINDS:
        close = did_you_mean(kind, ("recipes", *KINDS)) or ";"
        raise UsageError(f"ls: got {kind}{close} What can be listed: recipes, {', '.join(KINDS)}")
    if kind == "recipes":
        first = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in shipped().items()}
        # the header of a recipe begins with what it claims
        lines = {name: line[1:].strip() if line.startswith("#") else "" for name, line in first.items()}
    else:
        lines = {name: entry.help for name, entry in KINDS[kind].items()}
    width = max(map(len, lines), default=0)
    for name, help in lines.items():
        typer.echo(f"{name:{width}}  {help}")


def cat(recipe: RecipeName) -> None:
    """Print the text of a recipe."""
    typer.echo(_text(recipe), nl=False)


def cp(
    recipe: RecipeName,
    to: Annotated[
        Path | None, typer.Argument(help="A file or folder; by default here, under its own name.", metavar="PATH")
    ] = None,
) -> None:
    """Copy a recipe, to change it."""
    from hyperopt_cli.recipe.load import find

    text, name = _text(recipe), find(recipe).name
    target = Path(name) if to is None else to / name if to.is_dir() else to
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists; give another name: hyperopt cp {recipe} NAME.yaml") from None
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror}; give a writable place") from None
    typer.echo(str(target))


def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    With the YAML language server: hyperopt schema > recipe.json, and
    `# yaml-language-server: $schema=recipe.json` on a recipe's first line.
    """
    from hyperopt_cli.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _text(recipe: str) -> str:
    from hyperopt_cli.recipe.load import find, read_text

    return read_text(find(recipe), recipe)
