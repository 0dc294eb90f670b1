"""`hyperopt run`: tune."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hyperopt_cli.cli.options import AllowImport, Overrides, RecipeName, load_recipe, with_options
from hyperopt_cli.errors import Stopped

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

    from hyperopt_cli.cli.display import summary, watching
    from hyperopt_cli.execute import execute
    from hyperopt_cli.experiment import build
    from hyperopt_cli.recipe.load import find
    from hyperopt_cli.runs.resuming import locked, opened
    from hyperopt_cli.runs.stopping import StopFlag

    experiment = build(loaded, allow_import or ())
    path = find(recipe)
    directory, continued = opened(resume, out, path.stem, loaded.to_yaml())
    flag = StopFlag()
    try:
        with locked(directory), watching(experiment, directory, json) as watcher, flag:
            written = path.read_text(encoding="utf-8")
            result, error = execute(experiment, loaded, written, directory, watcher, flag, continued)
    except KeyboardInterrupt:
        print(f"hyperopt: interrupted; what was measured so far is kept in {directory.root}", file=sys.stderr)
        raise typer.Exit(130) from None
    except Stopped as stopped:
        again = f"continue with --resume {shlex.quote(str(directory.root))}"
        print(f"hyperopt: {stopped}; a checkpoint is kept in {directory.root}: {again}", file=sys.stderr)
        raise typer.Exit(130 if stopped.signal == "SIGINT" else stopped.exit_code) from None
    summary(result, directory, json)
    if error is not None:
        kept = "nothing was measured" if result.best is None else f"the best so far is kept in {directory.root}"
        print(f"hyperopt: diverged: {error}; {kept}. {_REMEDY}", file=sys.stderr)
        raise typer.Exit(error.exit_code)
