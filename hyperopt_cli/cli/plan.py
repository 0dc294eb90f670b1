"""`hyperopt plan`: what every mode would take, before any is run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperopt_cli.byte_sizes import parsed_bytes
from hyperopt_cli.cli.again import allowing, command
from hyperopt_cli.cli.options import AllowImport, Device, Overrides, RecipeName, load_recipe, with_options
from hyperopt_cli.errors import UsageError

if TYPE_CHECKING:
    from hyperopt_cli.instantiate import Experiment
    from hyperopt_cli.modes import Plan
    from hyperopt_cli.modes.planning.prediction import Prediction


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    device: Device = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Plan for so much memory, e.g. 8GiB; what is there by default.", metavar="SIZE"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    allow_import: AllowImport = None,
) -> None:
    """Predict time and memory of every mode from a few measured steps, and say which to take.

    Each mode is measured as it is without settings, with fewer columns, slots and so on where these may help.

    Example: hyperopt plan mnist_lr steps=10000 --memory 8GiB
    """
    try:
        available = None if memory is None else parsed_bytes(memory)
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from None
    loaded = load_recipe(recipe, with_options(overrides, device=device), allow_import)

    from rich.console import Console

    from hyperopt_cli.instantiate import build
    from hyperopt_cli.modes import plan as make_plan
    from hyperopt_cli.run_directory.json_files import to_text

    experiment = build(loaded, allow_import or ())
    space, seed = experiment.space, experiment.descent.seeds(experiment.seed, 0)[0]
    with Console(stderr=True).status("measuring a few steps of each mode"):
        made = make_plan(experiment.problem(seed), space.natural(space.initial()), available_bytes=available)
    if json:
        typer.echo(to_text(_as_json(made, experiment)))
        return
    _show(made, experiment)
    mode = recipe_line(made.choice).replace("mode: ", "mode=", 1)
    chosen = with_options(overrides, device=device)
    kept = [each for each in chosen if not each.startswith(("mode=", "mode."))]
    typer.echo(f"\nrun it: {command('run', recipe, *kept, mode, *allowing(allow_import))}")


def _show(made: "Plan", experiment: "Experiment") -> None:
    from rich.console import Console
    from rich.table import Table

    from hyperopt_cli.byte_sizes import bytes_text
    from hyperopt_cli.modes.planning.plan import seconds_text

    console, num = Console(), _num_hypergradients(experiment)
    console.print(
        f"{num} hypergradients of {experiment.steps} steps, on {experiment.device} with "
        f"{bytes_text(made.available_bytes)}; time, memory and counts of one hypergradient:",
        highlight=False,
    )
    table = Table(box=None)
    for heading in ("mode", "time", "whole run", "memory", "fits", "gradients", "HVPs"):
        table.add_column(heading, no_wrap=True)
    for p in made.predictions:
        if p.wall_s is None or p.peak_bytes is None:
            table.add_row(p.name, "-", "-", "-", "no", "-", "-")
            continue
        times = seconds_text(p.wall_s), seconds_text(p.wall_s * num)
        fits = "chosen" if p is made.choice else "yes" if p.fits else "no"
        table.add_row(p.name, *times, bytes_text(p.peak_bytes), fits, str(p.num_gradients), str(p.num_hvps))
    console.print(table)
    if long := dict.fromkeys(p.name.partition(":")[0] for p in made.predictions if p.may_compile):
        console.print(f"\n{' and '.join(long)} measured uncompiled; so long a run may be compiled, and then takes less")
    for prediction in made.predictions:
        if prediction.note:
            console.print(f"\n{prediction.name} can't run: {prediction.note}", highlight=False, markup=False)
    console.print(f"\n{made.why}\n\n{recipe_line(made.choice)}", highlight=False, markup=False)


def _as_json(made: "Plan", experiment: "Experiment") -> dict[str, Any]:
    num, predictions = _num_hypergradients(experiment), []
    for prediction in made.predictions:
        wall_s = prediction.wall_s
        row = {
            "run_s": None if wall_s is None else num * wall_s,
            **prediction._asdict(),
            "may_compile": prediction.may_compile,
        }
        del row["mode"]  # an instance; `name` says it
        predictions.append(row)
    return {
        "device": str(experiment.device),
        "available_bytes": made.available_bytes,
        "steps": experiment.steps,
        "num_hypergradients": num,
        "predictions": predictions,
        "choice": made.choice.name,
        "why": made.why,
        "recipe": recipe_line(made.choice),
    }


def _num_hypergradients(experiment: "Experiment") -> int:
    return (experiment.descent.steps + 1) * experiment.descent.replicas


def recipe_line(prediction: "Prediction") -> str:
    """Returns the line of a recipe that sets the mode: `mode: {name: reverse, slots: 50}`."""
    name, given = prediction.mode.name, prediction.mode.changed
    if not given:
        return f"mode: {name}"
    return f"mode: {{name: {name}, {', '.join(f'{key}: {value}' for key, value in given.items())}}}"
