"""`hyperopt train`: train with given or tuned values."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.cli import completion
from hyperopt_cli.cli.again import again
from hyperopt_cli.cli.options import AllowImport, Device, Out, Overrides, load_recipe, with_options
from hyperopt_cli.cli.run import exit_code
from hyperopt_cli.errors import NonFiniteError, Remedy, Stopped, UsageError
from hyperopt_cli.run_directory.directory import TRAIN, RunDirectory
from hyperopt_cli.run_directory.signals import StopFlag

if TYPE_CHECKING:
    from hyperopt_cli.run_directory.trained import Trained

_RECIPE_HELP = (
    "A recipe (a path, or the name of one that ships), or the directory of a run, whose tuned values it takes."
)
_SEEDS_HELP = "Training runs with other initial weights and batches each; of a RUN both tuned and untuned, in a table."


def train(
    recipe: Annotated[str, typer.Argument(help=_RECIPE_HELP, metavar="RECIPE|RUN", autocompletion=completion.recipes)],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(help=_SEEDS_HELP, metavar="N")] = 1,
    untuned: Annotated[
        bool, typer.Option("--untuned", help="Of a RUN, the values that its recipe starts from.")
    ] = False,
    out: Out = None,
    device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line a training run, and one for the result.")] = False,
    allow_import: AllowImport = None,
) -> None:
    """Train with the values of a recipe, or with those that a run has tuned; no hypergradient is taken.

    It writes model.pt, a state_dict for torch.load(weights_only=True).

    Example: hyperopt train runs/digits_lr-... steps=2000 --seeds 5
    """
    from hyperopt_cli.run_directory.reading import best_hyperparameters

    if seeds < 1:
        raise UsageError(f"--seeds: got {seeds}; must be an integer of at least 1")
    run = RunDirectory.open(Path(recipe)) if Path(recipe).is_dir() else None
    tuned = None if run is None or untuned else best_hyperparameters(run)
    name = recipe if run is None else str(run.resolved)
    loaded = load_recipe(name, with_options(overrides, device=device), allow_import)
    directory: RunDirectory | None = None
    try:
        with StopFlag():
            from hyperopt_cli.cli.compare import steps_bar
            from hyperopt_cli.commands.train import execute_training, overridden, tuned_values
            from hyperopt_cli.instantiate import build
            from hyperopt_cli.recipe.load import find, read_text
            from hyperopt_cli.recipe.sources import sources

            experiment = build(loaded, tuple(allow_import or ()))
            start = experiment.space.natural(experiment.space.initial())
            values = {"untuned": start}
            if tuned is not None:
                chosen = tuned_values(tuned, start, overridden(overrides or ()))
                values = {"tuned": chosen, **(values if seeds > 1 else {})}
            path = find(recipe) if run is None else run.recipe
            written = read_text(path, str(path))
            try:
                directory = RunDirectory.create(out, f"{TRAIN}-{path.stem if run is None else run.root.resolve().name}")
            except UsageError as error:
                error.remedied(Remedy("to write into a new one below runs/", drop=("--out",)))
                raise
            if not json:
                what = f"{' and '.join(values)} values, at {seeds} seed{'s' if seeds > 1 else ''}"
                steps, device_name = experiment.steps, experiment.device
                typer.echo(f"training over {steps} steps with {what}, on {device_name}; writing {directory.root}")
            with steps_bar(json, "training") as on_step:
                code = sources(tuple(allow_import or ()))
                runs = execute_training(
                    experiment, loaded, written, directory, values, seeds, on_step, partial(_say, json), code
                )
    except (KeyboardInterrupt, Stopped) as ended:
        what = str(ended) if isinstance(ended, Stopped) else "interrupted"
        there = "nothing was measured" if directory is None else f"{directory.root} has the runs that had ended"
        print(f"hyperopt: {what}; {there}; start anew: {again(drop=('--out',))}", file=sys.stderr)
        raise typer.Exit(exit_code(ended) if isinstance(ended, Stopped) else 130) from None
    _say(json, runs, directory)
    why = next((each.why for each in runs if each.why is not None and each.values == runs[0].values), None)
    if why is not None:
        advice = "give smaller steps: another value of lr, or a schedule with a warm-up"
        print(f"hyperopt: diverged: {why}; what was measured is in {directory.root}; {advice}", file=sys.stderr)
        raise typer.Exit(NonFiniteError.exit_code)


def _say(json: bool, told: "Trained | list[Trained]", directory: RunDirectory | None = None) -> None:
    """Prints a training run that has ended, or all of them at the end of the command."""
    from rich.console import Console

    from hyperopt_cli.cli.tables import training_line, training_table
    from hyperopt_cli.run_directory.json_files import read_json, to_text
    from hyperopt_cli.run_directory.trained import Trained

    if isinstance(told, Trained):
        typer.echo(to_text(told.to_json()) if json else training_line(told))
        return
    assert directory is not None
    if json:
        typer.echo(to_text({"result": read_json(directory.result), "directory": str(directory.root)}))
        return
    console = Console()
    console.print(training_table(told))
    typer.echo(f"\neverything is in {directory.root}" + (", the model in model.pt" if directory.model.exists() else ""))
    typer.echo(f"curves: tensorboard --logdir {shlex.quote(str(directory.tensorboard))}")
