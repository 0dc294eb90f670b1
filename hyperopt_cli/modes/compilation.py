"""Whether the steps of a run are compiled: as asked for, or where that is worth it (`program/worth_compiling.py`)."""

from typing import Any

from hyperopt_cli.checks.verdict import Circumstances
from hyperopt_cli.dynamics.stepping import StepAt
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.program import Compilation, cannot_compile, decide
from hyperopt_cli.program.failures import is_of_compiling, reason_without
from hyperopt_cli.ranks.group import ALONE, Ranks

ALLOWED = (True, False, "auto")


def check_compile(given: object) -> None:
    """Refuses what is no setting of `compile`.

    Raises:
        ValueError: it is none of true, false and "auto".
    """
    if given not in ALLOWED:
        raise ValueError(f"compile: got {given!r}; allowed are True, False and 'auto'")


def compilation_of(
    compile: bool | str,
    name: str,
    made_for: Circumstances,
    step: StepAt,
    example: tuple[Any, ...],
    known: Measurements,
    ranks: Ranks = ALONE,
) -> Compilation:
    """Decides whether a step is compiled.

    Args:
        compile: true, false, or "auto".
        name: of the step.
        made_for: what a decision holds for; its horizon says how much compiling may take.
        step: the step.
        example: its arguments.
        known: decisions of `auto` before; a new one is added.
        ranks: the processes that take the run together.

    Raises:
        UsageError: compiling was asked for, and several processes take the run together.
    """
    if ranks.size > 1:
        return _uncompiled(compile, ranks)
    before = known.compilations.get((name, made_for)) if compile == "auto" else None
    if before is not None and not (before.compiled and cannot_compile() is not None):
        return before
    made = decide(
        compile,
        made_for.steps,
        lambda: step.eager(*example),
        lambda: step.compiled(*example),
        lambda: step.num_operators(*example),
    )
    if compile == "auto":
        known.compilations[name, made_for] = made
    return made


def _uncompiled(compile: bool | str, ranks: Ranks) -> Compilation:
    """Of a run that several processes take together.

    Compiled for different numbers of columns, steps round differently: the runs of ranks would part. A part of a batch
    ends in a sum over all ranks, of which there is no graph.
    """
    if compile is True:
        raise UsageError(f"compile: got true with shard: {ranks.shard} over {ranks.size} ranks; leave compile out")
    return Compilation(False, f"not compiled, for {ranks.size} ranks take the run together")


def without_compiling(compile: bool | str, compilation: Compilation, error: Exception) -> Compilation:
    """Returns the decision after a step could not be compiled, where "auto" chose to compile it.

    Raises:
        Exception: `error`, which is not of compiling, or compiling was asked for.
    """
    if compile != "auto" or not compilation.compiled or not is_of_compiling(error):
        raise error
    return Compilation(False, reason_without(error))


def stats_of_compilation(compilation: Compilation) -> dict[str, Any]:
    """Returns the entries of a run's stats that say whether its steps are compiled, and why."""
    if not compilation.compiled:
        return {"compiled": False, **({"compiled_why": compilation.why} if compilation.failed else {})}
    return {"compiled": True, "compiled_why": compilation.why}
