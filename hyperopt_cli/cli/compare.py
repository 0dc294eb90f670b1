"""`hyperopt compare`: the same hypergradient in several modes."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.cli.again import again, command
from hyperopt_cli.cli.options import AllowImport, Device, Overrides, RecipeName, load_recipe, with_options
from hyperopt_cli.errors import Issue, RecipeError, Remedy, UsageError

if TYPE_CHECKING:
    from hyperopt_cli.commands.compare import Candidate
    from hyperopt_cli.comparison import Comparison

_MODES_HELP = "NAME[:KEY=VALUE]... separated by commas, e.g. forward,reverse:slots=50,reverse:window=20"
_TOLERANCE_HELP = (
    "Largest relative difference of exact modes that passes; by default 1e-8 in float64 (1e-5 with reversible), "
    "1e-3 in float32, 2e-2 in tf32, 1e-1 in bf16."
)


def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    modes: Annotated[str, typer.Option(help=_MODES_HELP, metavar="MODE,...")] = "forward,reverse,reversible",
    steps: Annotated[int | None, typer.Option(help="A shorter horizon; the recipe's by default.", metavar="N")] = None,
    tolerance: Annotated[float | None, typer.Option(help=_TOLERANCE_HELP, metavar="NUMBER")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new directory; runs/compare-RECIPE-TIME-ID by default.", metavar="DIR"),
    ] = None,
    device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    allow_import: AllowImport = None,
) -> None:
    """Compute one hypergradient of a recipe in several modes: do they agree, and what do they cost?

    Exit codes: 0 the exact modes agree, 1 a mode failed, 2 one refused or lacked memory, 3 one diverged, 4 exact modes
    disagree.

    Example: hyperopt compare digits_lr --steps 50 --modes forward,reverse,reverse:slots=10
    """
    from hyperopt_cli.recipe.load import find
    from hyperopt_cli.recipe.mode_list import mode_overrides

    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance: got {tolerance}; must be a number of at least 0, such as 1e-6")
    chosen = mode_overrides(modes)
    changes = with_options(overrides, steps=steps, device=device)
    loaded = load_recipe(recipe, changes, allow_import)

    from hyperopt_cli.commands.compare import execute_comparison
    from hyperopt_cli.comparison import check
    from hyperopt_cli.instantiate import build
    from hyperopt_cli.recipe.sources import sources
    from hyperopt_cli.run_directory.directory import new_folder

    allow = tuple(allow_import or ())
    candidates = _candidates(recipe, changes, chosen, allow_import)
    experiment = build(loaded, allow)
    path = find(recipe)
    written = path.read_text(encoding="utf-8")
    try:
        root = new_folder(out, f"compare-{path.stem}")
    except UsageError as error:
        error.remedied(Remedy("to write into a new one below runs/", drop=("--out",)))
        raise
    try:
        with steps_bar(json, "warming up") as on_step:
            comparison = execute_comparison(experiment, candidates, written, root, tolerance, on_step, sources(allow))
    except KeyboardInterrupt:
        anew = again(drop=("--out",))
        print(
            f"hyperopt: interrupted before every mode had run; {root} has those that had; start anew: {anew}",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    _show(comparison, root, json)
    check(comparison)
    without = [each for each in comparison.modes if each.exit_code]
    if without:
        named = ", ".join(f"{each.mode} ({each.status})" for each in without)
        see = command("runs", str(root))
        print(f"hyperopt: no result from {named}; its status.json says why, and so does: {see}", file=sys.stderr)
        raise typer.Exit(max(each.exit_code for each in without))  # the gravest


def _candidates(
    recipe: str, changes: list[str], chosen: dict[str, list[str]], allow_import: list[str] | None
) -> "dict[str, Candidate]":
    """Returns the modes, by the name that was typed; whatever is wrong with any of them is raised at once."""
    from hyperopt_cli.commands.compare import Candidate
    from hyperopt_cli.instantiate.build import check, make_mode

    made: dict[str, Candidate] = {}
    issues: list[Issue] = []
    for typed, mode_changes in chosen.items():
        try:
            loaded = load_recipe(recipe, [*changes, *mode_changes], allow_import)
            check(loaded, allow_import or ())
            made[typed] = Candidate(loaded, make_mode(loaded))
        except RecipeError as error:
            issues += error.issues
    if issues:
        raise RecipeError(list(dict.fromkeys(issues)))
    return made


@contextmanager
def steps_bar(json: bool, begin: str) -> Iterator[Callable[[str, str, int, int], None]]:
    """A context with a function that shows, on a terminal alone, which mode (or training run) is at which step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console()
    quiet = json or not console.is_terminal
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(begin, total=None)

        def on_step(mode: str, phase: str, done: int, steps: int) -> None:
            progress.update(task, description=f"{mode}: {phase} {done}/{steps}", completed=done, total=steps)

        yield on_step


def _show(comparison: "Comparison", root: Path, json: bool) -> None:
    import shlex

    from hyperopt_cli.cli.comparison_table import print_comparison
    from hyperopt_cli.run_directory.json_files import to_text

    if json:
        typer.echo(to_text({"comparison": asdict(comparison), "directory": str(root)}))
        return
    print_comparison(comparison)
    typer.echo(f"\neverything is in {root}, a run for each mode: {command('runs', str(root))}")
    typer.echo(f"curves: tensorboard --logdir {shlex.quote(str(root))}")
