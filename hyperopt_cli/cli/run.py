"""`hyperopt run`: tune."""

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.cli.options import AllowImport, Overrides, RecipeName, load_recipe, with_options
from hyperopt_cli.errors import (
    DatasetError,
    HyperoptError,
    NoiseError,
    NoMemoryError,
    NonFiniteError,
    RankLostError,
    Stopped,
    UsageError,
    VerificationError,
)
from hyperopt_cli.runs.directory import LATEST, RunDirectory
from hyperopt_cli.runs.stopping import StopFlag

if TYPE_CHECKING:
    from hyperopt_cli.ranks.group import Ranks
    from hyperopt_cli.recipe import Recipe

_WORDS = ("never", "auto")
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
    nproc: Annotated[
        int, typer.Option(help="Processes on this machine that share the work (shard: in the recipe).")
    ] = 1,
) -> None:
    """Tune the hyperparameters of a recipe.

    Example: hyperopt run digits_lr outer.steps=5 --mode reverse
    """
    _check_resume(resume, out)
    loaded = load_recipe(recipe, with_options(overrides, mode=mode, device=device), allow_import)

    from hyperopt_cli.ranks.launching import launched, this_command
    from hyperopt_cli.ranks.place import place
    from hyperopt_cli.recipe.sharding import shard_of

    own = place()
    if own is None and nproc != 1:
        shard_of(loaded, nproc)
        code, told = launched(this_command(), nproc)
        for text in told:
            print(f"hyperopt: {text}; what was kept can be continued with --resume", file=sys.stderr)
        raise typer.Exit(code)
    from hyperopt_cli.ranks.joining import joined

    with joined(own, shard_of(loaded, own.size if own else 1)) as ranks:
        try:
            if ranks.is_lead:
                code = _lead(loaded, recipe, out, resume, json, allow_import or (), ranks)
            else:
                code = _follow(loaded, allow_import or (), ranks, own.local_rank if own else 0)
        except RankLostError as error:
            print(f"hyperopt: rank {ranks.rank} of {ranks.size}: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
    if code:
        raise typer.Exit(code)


def _lead(
    loaded: "Recipe", recipe: str, out: Path | None, resume: str, json: bool, allow: Sequence[str], ranks: "Ranks"
) -> int:
    """The rank that writes and prints, or a process that is alone; returns its exit code."""
    directory: RunDirectory | None = None
    flag = StopFlag()
    try:
        with flag:
            from hyperopt_cli.cli.display import summary, watching
            from hyperopt_cli.execute import execute
            from hyperopt_cli.experiment import build, check_dividing
            from hyperopt_cli.recipe.difference import difference
            from hyperopt_cli.recipe.load import find, read_text
            from hyperopt_cli.runs.resuming import locked, opened

            experiment = ranks.each(lambda: build(loaded, allow, ranks))
            ranks.each(lambda: check_dividing(experiment, loaded))
            path, differs = find(recipe), partial(difference, now=loaded.to_yaml())
            made, continued = ranks.each(lambda: opened(resume, out, path.stem, differs))
            directory = made
            with ranks.each(lambda: locked(made)), watching(experiment, made, json) as watcher:
                written = read_text(path, recipe)
                result, error = execute(experiment, loaded, written, made, watcher, flag, continued, ranks)
    except KeyboardInterrupt:
        kept = "nothing was measured" if directory is None else f"what was kept so far is in {directory.root}"
        print(f"hyperopt: interrupted; {kept}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (Stopped, RankLostError) as stopped:
        if isinstance(stopped, RankLostError):
            print(f"hyperopt: {_how_to_go_on(directory)}, with any number of ranks", file=sys.stderr)
            raise
        print(f"hyperopt: {stopped}; {_how_to_go_on(directory)}", file=sys.stderr)
        return _code(stopped)
    except (DatasetError, NoMemoryError) as error:
        if directory is None:
            raise
        raise type(error)(f"{error}. {_kept(directory)}") from error
    assert directory is not None
    summary(result, directory, json)
    if error is None:
        return 0
    kept = "nothing was measured" if result.best is None else f"the best so far is kept in {directory.root}"
    if isinstance(error, NoiseError):
        print(f"hyperopt: {error}, or bounds that keep it there; {kept}", file=sys.stderr)
    else:
        print(f"hyperopt: diverged: {error}; {kept}. {_REMEDY}", file=sys.stderr)
    return error.exit_code


def _follow(loaded: "Recipe", allow: Sequence[str], ranks: "Ranks", local_rank: int) -> int:
    """A rank that is not the lead: it ends with the exit code of the lead, which says why."""
    from hyperopt_cli.execute import follow
    from hyperopt_cli.experiment import build, check_dividing
    from hyperopt_cli.ranks.group import TOLD_BY_LEAD

    try:
        with StopFlag() as flag:
            experiment = ranks.each(lambda: build(loaded, allow, ranks, local_rank))
            ranks.each(lambda: check_dividing(experiment, loaded))
            for _ in ("opened", "locked"):
                ranks.each(lambda: None)
            follow(experiment, flag, ranks)
        return 0
    except RankLostError:
        raise
    except HyperoptError as error:
        if hasattr(error, TOLD_BY_LEAD) or isinstance(error, Stopped | NonFiniteError | VerificationError):
            return _code(error)
        print(f"hyperopt: rank {ranks.rank} of {ranks.size}: {error}", file=sys.stderr)
        raise typer.Exit(_code(error)) from None  # at once: the others do not know of it


def _code(error: HyperoptError) -> int:
    return 130 if isinstance(error, Stopped) and error.signal == "SIGINT" else error.exit_code


def _check_resume(resume: str, out: Path | None) -> None:
    """Refuses what is neither a word that is known nor a directory; given --out too, only what was meant as a word."""
    if resume in _WORDS or (resume and Path(resume).is_dir()):
        return
    from hyperopt_cli.recipe.wording import did_you_mean

    meant = did_you_mean(resume, _WORDS)
    if meant or out is None or not resume:
        raise UsageError(
            f"--resume: {resume or 'an empty text'} is not a directory; allowed are never, auto and the directory of a "
            f"run{meant}"
        )


def _kept(directory: "RunDirectory") -> str:
    """What a run that has failed can be continued from, and how."""
    from hyperopt_cli.runs.checkpoints import Checkpoints

    names, resume = Checkpoints(directory.checkpoints).names(), f"--resume {shlex.quote(str(directory.root))}"
    if not names:
        return f"There was no checkpoint yet: {resume} then starts again"
    return f"The last checkpoint, {names[0]}, is intact: continue from it then, with {resume}"


def _how_to_go_on(directory: RunDirectory | None) -> str:
    """After a run that has not come to its end."""
    if directory is None:
        return "nothing was measured: run it again"
    again = f"--resume {shlex.quote(str(directory.root))}"
    if (directory.checkpoints / LATEST).exists():
        return f"a checkpoint is kept in {directory.root}: continue with {again}"
    return f"there was nothing to keep yet: start again with {again}"
