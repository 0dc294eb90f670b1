"""`hyperopt` in a process of its own that is forked from this one, which has loaded already what takes seconds.

What a test says of signals, of exit codes, of terminals and of ranks holds for it as for one that is started anew; how
one is started anew, other tests say.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from hyperopt_cli import __main__ as entry
from hyperopt_cli.ranks import launching
from tests.limited import warm

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def forked(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """`hyperopt` with these arguments, and the ranks that it starts, forked likewise; `options` are Popen's."""
    _load()
    work = partial(_hyperopt, "hyperopt", arguments, options.get("env"))
    return subprocess.Popen(["hyperopt"], **options, text=True, preexec_fn=_instead(work))


@cache
def _load() -> None:
    """Imports what a run imports, once, so that what is forked has it."""
    import torch.utils.tensorboard  # noqa: F401

    from hyperopt_cli.cli import display, run  # noqa: F401
    from hyperopt_cli.commands import run as command  # noqa: F401
    from hyperopt_cli.run_directory import tensorboard  # noqa: F401

    warm()


def _instead(work: Callable[[], None]) -> Callable[[], None]:
    """What Popen calls in the new process, just before it would load a program there: it does `work`, and ends."""
    before = _open_files()

    def call() -> None:
        for number in _open_files() - before:  # Popen waits until its own is closed
            if number > 2:
                os.close(number)
        work()

    return call


def _open_files() -> set[int]:
    found = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}  # not the folder itself


def _hyperopt(program: str, arguments: tuple[str, ...], env: Mapping[str, str] | None) -> None:
    """What `program` does with these arguments, which is one that calls hyperopt; it doesn't return."""
    code = 1
    try:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
            lines = 1 if os.isatty(number) or number == 2 else -1
            stream = open(number, mode, lines, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.argv = [program, *arguments]
        launching.subprocess = _Forking  # type: ignore[assignment]
        try:
            entry.main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class _Forking:
    """The `subprocess` of a launcher that is forked: its ranks are forked from it."""

    @staticmethod
    def Popen(command: list[str], env: Mapping[str, str], preexec_fn: Callable[[], None], **options: Any) -> Any:
        assert command[1:4] == ["-P", "-m", "hyperopt_cli"]

        def work() -> None:
            preexec_fn()
            _hyperopt(str(entry.__file__), tuple(command[4:]), env)

        return subprocess.Popen(command, env=env, preexec_fn=_instead(work), **options)
