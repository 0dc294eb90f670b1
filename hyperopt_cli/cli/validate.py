"""`hyperopt validate`: is a recipe right?"""

import typer

from hyperopt_cli.cli.options import AllowImport, Overrides, RecipeName, load_recipe


def validate(recipe: RecipeName, overrides: Overrides = None, allow_import: AllowImport = None) -> None:
    """Check a recipe; every error at once, with its position.

    No data set is opened, except for one of your own of which the model has to know whether it has classes.
    """
    loaded = load_recipe(recipe, overrides, allow_import)

    from hyperopt_cli.instantiate import check
    from hyperopt_cli.recipe.load import ascii_name

    check(loaded, allow_import or (), may_open=True)
    tuned = ", ".join(name for name, entry in loaded.hyperparameters.items() if entry.anything_tuned)
    typer.echo(f"{ascii_name(recipe)}: valid (tunes {tuned} over {loaded.steps} steps, mode {loaded.mode.name})")
