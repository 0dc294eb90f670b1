"""`hyperopt run`: tune."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hyperopt_cli.cli.options import AllowImport, Overrides, RecipeName, load_recipe, with_options
from hyperopt_cli.errors import Stopped
from hyperopt_cli.runs.directory import LATEST, RunDirectory
from hyperopt_cli.runs.stopping import StopFlag

_REMEDY = "Try a lower start (hyperparameters.lr.initial), bounds, a lower outer.lr, or outer.clip_norm"


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    mode: Annotated[
        str | None, typer.Option(help="auto, forward, reverse or reversible; the recipe's by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new directory; runs/RECIPE-TIME-ID by default.")] = None,
    resume: Annotated[
        str, typer.Option(help="never; auto: continue the run in --out, or start it; or the directory of a run.")
    ] = "never",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an outer step, and one for the result.")] = False,
    allow_import: AllowImport = None,
) -> None:
    """Tune the hyperparameters of a recipe.

    Example: hyperopt run digits_lr outer.steps=5 --mode reverse
    """
    loaded = load_recipe(recipe, with_options(overrides, mode=mode, device=device), allow_import)

    directory: RunDirectory | None = None
    flag = StopFlag()
    try:
        with flag:
            from hyperopt_cli.cli.display import summary, watching
            from hyperopt_cli.execute import execute
            from hyperopt_cli.experiment import build
            from hyperopt_cli.recipe.difference import difference
            from hyperopt_cli.recipe.load import find, read_text
            from hyperopt_cli.runs.resuming import locked, opened

            experiment = build(loaded, allow_import or ())
            path = find(recipe)
            directory, continued = opened(resume, out, path.stem, partial(difference, now=loaded.to_yaml()))
            with locked(directory), watching(experiment, directory, json) as watcher:
                written = read_text(path, recipe)
                result, error = execute(experiment, loaded, written, directory, watcher, flag, continued)
    except KeyboardInterrupt:
        kept = "nothing was measured" if directory is None else f"what was kept so far is in {directory.root}"
        print(f"hyperopt: interrupted; {kept}", file=sys.stderr)
        raise typer.Exit(130) from None
    except Stopped as stopped:
        print(f"hyperopt: {stopped}; {_how_to_go_on(directory)}", file=sys.stderr)
        raise typer.Exit(130 if stopped.signal == "SIGINT" else stopped.exit_code) from None
    summary(result, directory, json)
    if error is not None:
        kept = "nothing was measured" if result.best is None else f"the best so far is kept in {directory.root}"
        print(f"hyperopt: diverged: {error}; {kept}. {_REMEDY}", file=sys.stderr)
        raise typer.Exit(error.exit_code)


def _how_to_go_on(directory: RunDirectory | None) -> str:
    """After a signal."""
    if directory is None:
        return "nothing was measured: run it again"
    again = f"--resume {shlex.quote(str(directory.root))}"
    if (directory.checkpoints / LATEST).exists():
        return f"a checkpoint is kept in {directory.root}: continue with {again}"
    return f"there was nothing to keep yet: start again with {again}"
