"""`hyperopt run`: tune."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from hyperopt_cli.cli import completion
from hyperopt_cli.cli.again import again, allowing, command, ways_out
from hyperopt_cli.cli.options import (
    AllowImport,
    Device,
    ModeName,
    Out,
    Overrides,
    Search,
    SearchTied,
    Trials,
    load_recipe,
    with_options,
)
from hyperopt_cli.errors import (
    DatasetError,
    HyperoptError,
    NoiseError,
    NoMemoryError,
    NonFiniteError,
    RankLostError,
    Remedy,
    Stopped,
    StorageError,
    UsageError,
    VerificationError,
)
from hyperopt_cli.run_directory.directory import LATEST, RunDirectory
from hyperopt_cli.run_directory.signals import StopFlag

if TYPE_CHECKING:
    from hyperopt_cli.ranks.group import Ranks
    from hyperopt_cli.recipe import Recipe
    from hyperopt_cli.run_directory.result import Result

_WORDS = ("never", "auto")
_RECIPE_HELP = "A path, or the name of a recipe that ships; with --resume DIR, that of the run there by default."


class _Asked(NamedTuple):
    """What is to be run, and how this command says so.

    Attributes:
        loaded: the recipe, with overrides.
        path: the file whose text is kept as it was written.
        missing: the file of the recipe where the command names none.
        resume: as given.
        out: as given.
        json: as given.
        allow: the patterns of `--allow-import`.
        anyway: go on with other code.
        jobs: plain runs at the same time.
        options: what continues a run beside `--resume DIR`, as it is given here.
    """

    loaded: "Recipe"
    path: Path
    missing: str
    resume: str
    out: Path | None
    json: bool
    allow: Sequence[str]
    anyway: bool
    jobs: int
    options: tuple[str, ...]


def run(
    recipe: Annotated[
        str | None, typer.Argument(help=_RECIPE_HELP, metavar="RECIPE", autocompletion=completion.recipes)
    ] = None,
    overrides: Overrides = None,
    mode: ModeName = None,
    search: Search = None,
    trials: Trials = None,
    search_tied: SearchTied = None,
    out: Out = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: continue the run in --out, or start it; DIR: continue the run there.",
            metavar="never|auto|DIR",
            autocompletion=lambda: _WORDS,
        ),
    ] = "never",
    resume_anyway: Annotated[
        bool, typer.Option("--resume-anyway", help="Continue though your own code has changed; the record says so.")
    ] = False,
    device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an outer step, and one for the result.")] = False,
    allow_import: AllowImport = None,
    nproc: Annotated[
        int,
        typer.Option(help="Processes on this machine that share the work (shard: in the recipe).", metavar="N"),
    ] = 1,
    jobs: Annotated[
        int,
        typer.Option(help="Plain runs of a scan or a random search at the same time.", metavar="N", min=1),
    ] = 1,
) -> None:
    """Tune the hyperparameters of a recipe.

    Example: hyperopt run digits_lr outer.steps=5 --mode reverse
    """
    _check_resume(resume, out, resume_anyway)
    given, overrides = _told_apart(recipe, overrides, resume)
    with nullcontext() if given is not None else _naming_the_recipe(resume):
        path, name = _recipe_of(given, resume)
        changes = with_options(
            overrides, mode=mode, device=device, search=search, trials=trials, search_tied=search_tied
        )
        loaded = load_recipe(name, changes, allow_import)
        counts = {"--nproc": nproc, "--jobs": jobs}
        options = (*(x for key, num in counts.items() if num != 1 for x in (key, str(num))), *allowing(allow_import))
        allow = tuple(allow_import or ())
        asked = _Asked(
            loaded, path, name if given is None else "", resume, out, json, allow, resume_anyway, jobs, options
        )

        from hyperopt_cli.ranks.launching import launched, this_command
        from hyperopt_cli.ranks.place import place
        from hyperopt_cli.recipe.sharding import shard_of

        own = place()
        if jobs != 1 and (own is not None or nproc != 1):
            raise UsageError("--jobs: the run is shared by several processes already; give it no --jobs, or no --nproc")
        if own is None and nproc != 1:
            shard_of(loaded, nproc)
            code, lost = launched(this_command(), nproc)
            for text in lost:
                go_on = again() if resume != "never" else again("--resume", "auto", drop=("--resume",))
                print(f"hyperopt: {text}; to continue what was kept: {go_on}", file=sys.stderr)
            raise typer.Exit(code)
        from hyperopt_cli.ranks.joining import joined

        with joined(own, shard_of(loaded, own.size if own else 1)) as ranks:
            try:
                if ranks.is_lead:
                    code = _lead(asked, ranks)
                else:
                    code = _follow(loaded, allow, ranks, own.local_rank if own else 0)
            except RankLostError as error:
                print(f"hyperopt: rank {ranks.rank} of {ranks.size}: {error}", file=sys.stderr)
                raise typer.Exit(error.exit_code) from None
        if code:
            raise typer.Exit(code)


def _lead(asked: _Asked, ranks: "Ranks") -> int:
    """Runs as the rank that writes and prints, or as a process that is alone; returns the exit code."""
    directory: RunDirectory | None = None
    loaded, flag = asked.loaded, StopFlag()
    try:
        with flag:
            from hyperopt_cli.cli.display import summary, watching
            from hyperopt_cli.commands.jobs import Jobs
            from hyperopt_cli.commands.run import Code, execute
            from hyperopt_cli.instantiate import build, check_dividing
            from hyperopt_cli.recipe.difference import difference
            from hyperopt_cli.recipe.load import read_text
            from hyperopt_cli.recipe.sources import sources
            from hyperopt_cli.run_directory.opening import locked, opened

            experiment = ranks.each(lambda: build(loaded, asked.allow, ranks))
            ranks.each(lambda: check_dividing(experiment, loaded))
            code, differs = Code(sources(asked.allow), asked.anyway), partial(difference, now=loaded.to_yaml())
            made, continued = ranks.each(lambda: opened(asked.resume, asked.out, asked.path.stem, differs))
            directory = made
            with (
                ranks.each(lambda: locked(made)),
                watching(experiment, made, asked.json) as display,
                nullcontext() if asked.jobs == 1 else Jobs(asked.jobs, loaded, asked.allow) as jobs,
            ):
                written = read_text(asked.path, str(asked.path))
                result, error = execute(experiment, loaded, written, made, display, flag, continued, ranks, code, jobs)
    except KeyboardInterrupt:
        print(f"hyperopt: interrupted; {_how_to_go_on(directory, asked)}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (Stopped, RankLostError) as stopped:
        if isinstance(stopped, RankLostError):
            print(f"hyperopt: with any number of ranks, {_how_to_go_on(directory, asked)}", file=sys.stderr)
            raise
        print(f"hyperopt: {stopped}; {_how_to_go_on(directory, asked)}", file=sys.stderr)
        return exit_code(stopped)
    except (DatasetError, NoMemoryError, StorageError) as error:
        if directory is None:
            raise
        raise type(error)(f"{error}. {_kept(directory, asked)}").remedied(*error.remedies) from error
    assert directory is not None
    summary(result, directory, asked.json)
    if error is None:
        return 0
    kept = "nothing was measured" if result.best is None else f"the best so far is kept in {directory.root}"
    if isinstance(error, NoiseError):
        print(f"hyperopt: {error}, or bounds that keep it there; {kept}", file=sys.stderr)
    else:
        advice = f"{_gentler(asked, result)}{ways_out(error.remedies)}"
        print(f"hyperopt: diverged: {error}; {kept}. {advice}", file=sys.stderr)
    return error.exit_code


def _gentler(asked: _Asked, result: "Result") -> str:
    """Returns, for a run that diverged, the command with smaller steps of training or of the outer loop."""
    advice = "Bounds and outer.clip_norm keep it from going there; or with"
    lr = asked.loaded.hyperparameters.get("lr")
    if result.best is None and lr is not None and len(lr.starts) == 1:
        lower = f"hyperparameters.lr.{'initial' if lr.tuned else 'value'}={lr.starts[0] / 10:g}"
    elif asked.loaded.outer.lr is not None:
        lower = f"outer.lr={asked.loaded.outer.lr / 10:g}"
    else:
        return "Bounds keep it from going there. "
    return f"{advice} a tenth of the step: {again(lower, drop=('--out', '--resume'), recipe=asked.missing)}"


def _follow(loaded: "Recipe", allow: Sequence[str], ranks: "Ranks", local_rank: int) -> int:
    """Runs as a rank that is not the lead; returns the exit code of the lead, which says why."""
    from hyperopt_cli.commands.follow import follow
    from hyperopt_cli.instantiate import build, check_dividing
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
            return exit_code(error)
        print(f"hyperopt: rank {ranks.rank} of {ranks.size}: {error}", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None  # at once: the others do not know of it


def exit_code(error: HyperoptError) -> int:
    """Returns the exit code of a command that ended by an error, or by a signal."""
    return 130 if isinstance(error, Stopped) and error.signal == "SIGINT" else error.exit_code


def _told_apart(recipe: str | None, overrides: list[str] | None, resume: str) -> tuple[str | None, list[str] | None]:
    """Returns the recipe (None where that of the run in `resume` is meant) and the overrides.

    Raises:
        UsageError: no recipe was given, and no directory that has one.
    """
    is_directory = resume not in _WORDS
    if recipe is not None and is_directory and "=" in recipe and not Path(recipe).exists():
        return None, [recipe, *(overrides or ())]
    if recipe is None and not is_directory:
        raise UsageError(
            "RECIPE is missing: give a path or the name of one that ships (hyperopt ls shows them), such as hyperopt "
            "run digits_lr, or the run that is to be continued with --resume DIR"
        )
    return recipe, overrides


def _recipe_of(given: str | None, resume: str) -> tuple[Path, str]:
    """Returns the file with the recipe as written, and the name of the one to load: of a run, with its overrides.

    Raises:
        UsageError: there is no such recipe.
    """
    from hyperopt_cli.recipe.load import find

    if given is not None:
        return find(given), given
    run = RunDirectory.open(Path(resume))
    if not (run.resolved.is_file() and run.recipe.is_file()):
        raise UsageError(f"{run.root} holds no recipe; give that of the run, in front of --resume")
    return run.recipe, str(run.resolved)


@contextmanager
def _naming_the_recipe(resume: str) -> Iterator[None]:
    """Names the recipe of the run in `resume` in commands that go on without it."""
    try:
        yield
    except HyperoptError as error:
        resolved = str(RunDirectory(Path(resume)).resolved)
        error.remedies = tuple(
            remedy._replace(recipe=resolved) if "--resume" in remedy.drop else remedy for remedy in error.remedies
        )
        raise


def _check_resume(resume: str, out: Path | None, anyway: bool) -> None:
    """Refuses what is neither a word that is known nor a directory; given --out too, only what was meant as a word."""
    if anyway and resume == "never":
        raise UsageError("--resume-anyway: nothing is continued here; add --resume").remedied(
            Remedy("to continue the run in --out, or the newest", ("--resume", "auto"), ("--resume",))
        )
    if resume in _WORDS or (resume and Path(resume).is_dir()):
        return
    from hyperopt_cli.recipe.wording import did_you_mean

    meant = did_you_mean(resume, _WORDS)
    if meant or out is None or not resume:
        raise UsageError(
            f"--resume: {resume or 'an empty text'} is not a directory; allowed are never, auto and the directory of a "
            f"run{meant}"
        )


def _continuing(directory: RunDirectory, asked: _Asked) -> str:
    """Returns the command that continues a run, whose recipe and overrides lie in its directory."""
    return command("run", "--resume", str(directory.root), *asked.options)


def _kept(directory: RunDirectory, asked: _Asked) -> str:
    """Returns, for a run that has failed, what it can be continued from and how."""
    from hyperopt_cli.run_directory.checkpoints import Checkpoints

    names, resume = Checkpoints(directory.checkpoints).names(), _continuing(directory, asked)
    if not names:
        return f"There was no checkpoint yet; to start again then: {resume}"
    return f"The last checkpoint, {names[0]}, is intact; to continue from it then: {resume}"


def _how_to_go_on(directory: RunDirectory | None, asked: _Asked) -> str:
    """Returns how to go on after a run that has not come to its end."""
    if directory is None or not directory.resolved.is_file():
        return f"nothing was measured: run it again: {again()}"
    resume = _continuing(directory, asked)
    if (directory.checkpoints / LATEST).exists():
        return f"a checkpoint is kept in {directory.root}: continue with: {resume}"
    return f"there was nothing to keep yet: start again with: {resume}"
