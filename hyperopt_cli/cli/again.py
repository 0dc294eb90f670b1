"""Whole commands that can be pasted, for messages that say how to go on."""

import shlex
import shutil
import sys
from collections.abc import Sequence

from hyperopt_cli.errors import Remedy


def command(*arguments: str) -> str:
    """Returns a command of hyperopt, quoted for a shell: `hyperopt run --resume there`."""
    module = sys.argv[0].endswith("__main__.py") and shutil.which("hyperopt") is None
    return shlex.join([*(("python", "-m", "hyperopt_cli") if module else ("hyperopt",)), *arguments])


def again(*add: str, drop: Sequence[str] = (), recipe: str = "") -> str:
    """Returns the command line of this process, changed.

    Args:
        add: arguments that come last; those that are there already are not given twice.
        drop: options, each with a value, that are left out.
        recipe: the recipe, behind the name of the command, where none was given.
    """
    kept: list[str] = []
    given = iter(sys.argv[1:])
    for argument in given:
        if argument in drop:
            next(given, None)
        elif argument.partition("=")[0] not in drop:
            kept.append(argument)
    if recipe:
        name = next(n for n, argument in enumerate(kept) if not argument.startswith("-"))
        kept.insert(name + 1, recipe)
    is_there = f" {shlex.join(add)} " in f" {shlex.join(kept)} "
    return command(*kept, *(() if is_there else add))


def ways_out(remedies: Sequence[Remedy]) -> str:
    """Returns a line for each way to go on, in front of each a line break."""
    return "".join(
        f"\n{remedy.why}: {again(*remedy.add, drop=remedy.drop, recipe=remedy.recipe)}" for remedy in remedies
    )


def allowing(allow_import: Sequence[str] | None) -> list[str]:
    """Returns the options that give the same leave once more."""
    return [word for pattern in allow_import or () for word in ("--allow-import", pattern)]
