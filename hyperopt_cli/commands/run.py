"""A run from its start to its result: the outer loop, with everything it leaves on the disk.

What is on the disk after each outer step is whole, so that a run which is killed, interrupted or diverges keeps the
best that it had reached.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

from hyperopt_cli.callback import Callback, Callbacks
from hyperopt_cli.commands.agreement import Agreement
from hyperopt_cli.commands.keeping import RunKeeper, bits_depend_on, usable_here
from hyperopt_cli.commands.record import Record
from hyperopt_cli.errors import (
    ANOTHER_RUN,
    HyperoptError,
    NonFiniteError,
    RankLostError,
    Remedy,
    Stopped,
    UsageError,
)
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.modes import Measurements
from hyperopt_cli.modes.account import listed
from hyperopt_cli.outer.ahead import Pool
from hyperopt_cli.outer.descent import descend
from hyperopt_cli.outer.outer_step import OuterStep, Trial
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.sources import changed
from hyperopt_cli.run_directory.checkpoints import Checkpoints
from hyperopt_cli.run_directory.directory import SOURCES_CHANGED, RunDirectory
from hyperopt_cli.run_directory.environment import environment
from hyperopt_cli.run_directory.result import Result
from hyperopt_cli.run_directory.signals import StopFlag
from hyperopt_cli.run_directory.status import LiveStatus, State, reported
from hyperopt_cli.run_directory.tensorboard import TensorBoardLog
from hyperopt_cli.stopping import only_after_steps


class Code(NamedTuple):
    """The user's own code that a run calls.

    Attributes:
        sources: digests of its files, as `recipe.sources` returns them.
        anyway: a run that was begun with another version of them is continued, and its record says so.
    """

    sources: Mapping[str, str]
    anyway: bool = False


NO_CODE = Code({})


class Execution(NamedTuple):
    """How a run ended.

    Attributes:
        result: the content of result.json.
        error: why it diverged, or None.
    """

    result: Result
    error: NonFiniteError | None


def execute(
    experiment: Experiment,
    recipe: Recipe,
    written: str,
    directory: RunDirectory,
    callback: Callback,
    flag: StopFlag | None = None,
    continued: bool = False,
    ranks: Ranks = ALONE,
    code: Code = NO_CODE,
    pool: Pool | None = None,
) -> Execution:
    """Runs `experiment` and writes everything into `directory`.

    Args:
        experiment: built from `recipe`.
        recipe: with every default filled in, kept as resolved.yaml.
        written: the recipe's text as the user has it, kept as recipe.yaml.
        directory: a new one, or that of a run that is continued.
        callback: is called at every step.
        flag: is set by signals; the run ends after the step in which it is set, or at the next place where it may stop.
        continued: from the newest checkpoint that can be used, or from the start if there is none at all.
        ranks: the processes that share the run; this is the lead, and the others `follow`.
        code: the user's own; other code than the checkpoint was made with is refused unless it says to go on.
        pool: other processes that take plain runs.

    Raises:
        Stopped: the flag was set; what there was to keep is in a checkpoint.
        UsageError: the examples or the user's own code are others than those of the checkpoint.
        CheckpointError: there are checkpoints, and none can be used.
        StorageError: something cannot be written; what was written before is intact.
    """
    flag, checkpoints = flag or StopFlag(), Checkpoints(directory.checkpoints)
    bits = bits_depend_on(experiment.device, ranks)
    digest = experiment.data_digest()
    tree = ranks.each(lambda: _resume_from(checkpoints, bits, digest, code, callback) if continued else {})
    at = ("n", "num_trials", "num_gradients")
    num_measured, num_trials, num_gradients = (tree["outer"][key] if tree else 0 for key in at)
    if continued:
        directory.rewind(num_measured, num_trials)
    if num_gradients > experiment.descent.steps + 1:
        callback.on_message(f"outer.steps is {experiment.descent.steps}; {num_gradients - 1} were made before")
    directory.write_recipe(written, recipe.to_yaml())
    directory.write_environment(environment(str(experiment.device)) | {"sources": dict(code.sources)})
    record = Record(experiment)
    if tree:
        record.load_state_dict(tree["record"])
    if files := changed(tree.get("sources", {}), code.sources):
        record.sources_changed.append({"outer_step": num_measured, "files": files})
    measurements = _measurements(directory, tree)
    if ranks.size > 1:
        tree = listed(tree)
    ranks.from_lead((tree.get("outer"), measurements.state_dict()))  # which the others take over in `follow`
    given: dict[str, Any] = {SOURCES_CHANGED: record.sources_changed} if record.sources_changed else {}
    status = LiveStatus(directory.status, outer_step=max(0, num_measured - 1), mode=recipe.mode.name, **given)

    def beside_outer() -> tuple[dict[str, Any], bool]:
        measured = measurements.state_dict()
        directory.write_measurements(measured)
        state = {"record": record.state_dict(), "measurements": measured, "data": digest, "sources": dict(code.sources)}
        return state, record.best_is_new()

    keeper = RunKeeper(checkpoints, recipe.checkpoint_every_s, flag, bits, beside_outer)
    agreement = Agreement(ranks, flag, keeper) if ranks.size > 1 else None
    with (
        reported(status),
        _log(experiment, directory, written, num_measured if continued else None) as log,
        _interruptible(record, directory, recipe.mode.name, flag),
        nullcontext() if ranks.size == 1 else only_after_steps(),
    ):
        callbacks = Callbacks(_Heartbeat(status), log, callback)
        steps = descend(
            experiment.problem,
            experiment.space,
            experiment.descent,
            experiment.mode,
            experiment.seed,
            callback=callbacks,
            keeper=agreement or keeper,
            resume_from=tree.get("outer"),
            measurements=measurements,
            ranks=ranks,
            together=None if agreement is None else agreement.together,
            pool=pool,
        )
        error = _written_down(steps, record, directory, measurements, callbacks)
        state: State = "done" if error is None else "diverged"
        result = _scored(record, directory, state, recipe.mode.name)
        callbacks.on_end(result)
        status.finish(state, **({} if error is None else {"reason": str(error)}))
    return Execution(result, error)


def _written_down(
    steps: Iterator[OuterStep | Trial],
    record: Record,
    directory: RunDirectory,
    measurements: Measurements,
    callback: Callback,
) -> NonFiniteError | None:
    """Takes all outer steps and writes each of them down; returns why the run diverged, if it did."""
    try:
        record.score_start()
        for step in steps:
            if isinstance(step, Trial):
                record.add(step)
                directory.append_trial(step.to_json())
                callback.on_trial(step)
                continue
            if files := record.files_changed():
                step.stats[SOURCES_CHANGED] = files
            record.add(step)
            directory.write_measurements(measurements.state_dict())
            directory.append_metrics(step)
            callback.on_outer_step(step)
            with suppress(Stopped):  # the outer loop is the next to know of it, and keeps this step first
                record.score_start()
    except NonFiniteError as diverged:
        return diverged
    return None


def _resume_from(
    checkpoints: Checkpoints, bits: dict[str, Any], digest: str | None, code: Code, callback: Callback
) -> dict[str, Any]:
    """Returns the content of the newest checkpoint that can be used; an empty one if there is none at all.

    Raises:
        UsageError: the checkpoint is of a run on other data, or of other code.
    """
    checkpoints.clean()
    found = checkpoints.newest()
    if found is None:
        callback.on_message("there is no checkpoint: started again")
        return {}
    tree, left_out = usable_here(found, bits)
    if tree["data"] != digest:
        raise UsageError(
            "dataset: the examples are not those that the run began with; where its function draws them at random, "
            "give its generator a seed; put the files back, or start another run"
        ).remedied(ANOTHER_RUN)
    files = changed(tree.get("sources", {}), code.sources)
    if files and not code.anyway:
        raise UsageError(
            f"{', '.join(files)} changed since {found.name} was made: the run would mix what two versions of the code "
            "measure under one best; put the code back, start another run, or go on anyway, which the record then says"
        ).remedied(ANOTHER_RUN, Remedy("to go on anyway", ("--resume-anyway",)))
    if files:
        callback.on_message(
            f"{', '.join(files)} changed since {found.name} was made; goes on anyway, and the record says so"
        )
    if files and tree["outer"]["inner"]:  # a training run is of one code
        callback.on_message(f"outer step {tree['outer']['n']} starts again: it was begun with other code")
        tree = {**tree, "outer": {**tree["outer"], "inner": []}}
    for message in (*found.passed_over, *([left_out] if left_out else []), f"continued from {found.name}"):
        callback.on_message(message)
    return tree


@contextmanager
def _interruptible(record: Record, directory: RunDirectory, mode: str, flag: StopFlag) -> Iterator[None]:
    """A context that writes the result of a run that is interrupted or fails.

    After a signal the test split is not measured, because whoever sent it may not wait for it.
    """
    try:
        yield
    except (KeyboardInterrupt, Stopped, RankLostError) as stopped:
        scored = isinstance(stopped, KeyboardInterrupt) and flag.signal is None
        _scored(record, directory, "interrupted", mode, scored)
        raise
    except Exception:
        if record.has_any and not directory.result.exists():
            with suppress(HyperoptError, OSError):  # what has failed is told, not what failed after it
                directory.write_result(record.result("failed", mode, scored=False))
        raise


def _scored(record: Record, directory: RunDirectory, status: State, mode: str, scored: bool = True) -> Result:
    """Writes and returns the result; it is written first without the test split, in case measuring that fails.

    The model of the best is written in between, after a signal too; a second Ctrl-C leaves it out.
    """
    result = record.result(status, mode, scored=False)
    directory.write_result(result)
    with only_after_steps():
        state = record.model()
    if state is not None:
        directory.write_model(state)
    if scored:
        result = record.result(status, mode)
        directory.write_result(result)
    return result


def _log(experiment: Experiment, directory: RunDirectory, written: str, from_step: int | None) -> TensorBoardLog:
    """Returns the TensorBoard log; that of a continued run hides the steps that are repeated from `from_step` on."""
    if not from_step:  # whatever there was is hidden
        return TensorBoardLog(directory.tensorboard, recipe=written, purge_step=from_step)
    space = experiment.space
    start = space.courses(space.natural(space.initial()))
    return TensorBoardLog(directory.tensorboard, purge_step=from_step, start=start)


class _Heartbeat(Callback):
    """Says in status.json, at each inner step, that the run is alive."""

    def __init__(self, status: LiveStatus) -> None:
        self._status = status

    def on_inner_step(self, outer_step: int, replica: int, phase: str, done: int, steps: int) -> None:
        self._status.beat(outer_step=outer_step)


def _measurements(directory: RunDirectory, tree: Mapping[str, Any]) -> Measurements:
    """Returns what earlier parts of the run have measured, by its checkpoint and, behind it, by its directory."""
    measurements = Measurements()
    with suppress(KeyError, TypeError, AttributeError):  # of another version: measured again
        measurements.load_state_dict(directory.read_measurements())
    if tree:
        measurements.load_state_dict(tree["measurements"])
    return measurements
