"""What a shell proposes when Tab is pressed; nothing here imports torch.

Where nothing is proposed the shell completes paths by itself. `hyperopt --install-completion` is typer's, as is the
completion of commands and options.
"""

import re
from contextlib import suppress
from glob import escape, glob
from os.path import isdir
from typing import Any

import typer

from hyperopt_cli.errors import RecipeError
from hyperopt_cli.registry import MODES


def recipes(incomplete: str) -> list[str]:
    """Returns the recipes that ship, files that may hold one, and folders on the way to them."""
    from hyperopt_cli.recipe.shipped import shipped

    names = [name for name in shipped() if name.startswith(incomplete)]
    found = [f"{path}/" if isdir(path) else path for path in sorted(glob(f"{escape(incomplete)}*"))]
    paths = [path for path in found if path.endswith((".yaml", ".yml", "/"))]
    if not names and len(paths) == 1 and paths[0].endswith("/"):
        return recipes(paths[0])  # bash would put a space behind a folder that is alone
    return names + paths


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns how the override that is being typed may go on: keys of the recipe on the command line, and values.

    bash takes `steps=5` for three words, and asks for the last of them alone, `=` left out; others ask for the whole.
    """
    from hyperopt_cli.recipe.completing import key_completions, value_completions
    from hyperopt_cli.recipe.document import DocumentError, parse
    from hyperopt_cli.recipe.load import find, read_text

    recipe: Any = {}
    with suppress(RecipeError, DocumentError, OSError):  # a recipe that can't be read proposes no keys of its own
        recipe = parse(read_text(find(ctx.params.get("recipe") or ""), ""), "").data
    key, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in value_completions(recipe, key)]
    before = re.sub(" ?= ?", "=", " ".join(ctx.params.get("overrides") or ())).rpartition(" ")[2]
    if before.endswith("=") or (before and "=" not in before and not incomplete):
        return value_completions(recipe, before.rstrip("="))
    return key_completions(recipe, incomplete)


def modes() -> list[str]:
    """Returns the names of the modes."""
    return list(MODES)
