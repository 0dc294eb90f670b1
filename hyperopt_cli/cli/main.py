"""The entry point: the commands, and the exit codes of their errors."""

import errno
import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from hyperopt_cli import __version__
from hyperopt_cli.allocator import keep_freed_memory
from hyperopt_cli.cli.again import again, ways_out
from hyperopt_cli.cli.command import Command, Commands
from hyperopt_cli.errors import HyperoptError, NoMemoryError, RenamedWarning, needing
from hyperopt_cli.ranks.place import place
from hyperopt_cli.registry import COMMANDS, load

app = typer.Typer(
    name="hyperopt",
    cls=Commands,
    help="Tune the hyperparameters of a PyTorch training run by their exact gradient.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, path in COMMANDS.items():
    app.command(name, cls=Command)(load(path))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere on the command line).")] = False,
) -> None:
    """Exit codes.

    0 done, 1 defect, 2 usage or recipe, 3 diverged, 4 verification failed or no usable checkpoint, 75 stopped by a
    signal after a checkpoint, 130 Ctrl-C.
    """


_show_warning = warnings.showwarning
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def main() -> None:
    """Runs a command; a user's error is one message and an exit code, without a traceback unless `--debug` is given."""
    try:
        _run()
    except SystemExit as ended:
        if "hyperopt_cli.ranks.joining" not in sys.modules or place() is None:
            raise
        # threads of torch.distributed outlive the group of ranks, and now and then abort an orderly end
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


def _run() -> None:
    debug = "--debug" in sys.argv
    keep_freed_memory()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        with warnings.catch_warnings(), needing("this command"):
            warnings.showwarning = _note
            warnings.simplefilter("always", RenamedWarning)
            app(arguments, prog_name="hyperopt")
    except HyperoptError as error:
        _report(f"{error}{ways_out(error.remedies)}", debug)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _report(f"interrupted; what was written so far is kept\nto run it again: {again()}", debug)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)  # the reader of a pipe, such as head, has seen enough
    except OSError as error:
        if error.errno in UNWRITABLE:
            what = error.filename or "a file"
            _report(f"{what} can't be written ({error.strerror}); what was kept before is intact", debug)
            sys.exit(2)
        _defect(error, debug)
    except Exception as error:
        if "torch" in sys.modules:
            from hyperopt_cli.memory import is_lacking

            if is_lacking(error):
                _report(f"out of memory: {error}; what was kept before is intact", debug)
                sys.exit(NoMemoryError.exit_code)
        _defect(error, debug)


def _note(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
    """Shows a warning as Python does, but one of ours as a note in words."""
    if issubclass(category, RenamedWarning):
        sys.stderr.write(f"note: {message}\n")
    else:
        _show_warning(message, category, *where, **rest)


def _defect(error: Exception, debug: bool) -> NoReturn:
    where = "" if debug else f"\nThis may be a defect of hyperopt; to see where: {again('--debug')}"
    _report(f"{type(error).__name__}: {error}{where}", debug)
    sys.exit(1)


def _report(message: str, debug: bool) -> None:
    # A rank that has not met the others yet says nothing: the lead says the same.
    with suppress(HyperoptError):
        own = place()
        if own is not None and own.rank > 0 and "hyperopt_cli.ranks.joining" not in sys.modules and not debug:
            return
    if debug:
        traceback.print_exc()
    print(f"hyperopt: {message}", file=sys.stderr)
