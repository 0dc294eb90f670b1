"""A run from its start to its result: the outer loop, with everything it leaves on the disk.

What is on the disk after each outer step is whole, so that a run which is killed, interrupted or diverges keeps the
best that it had reached.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from hyperopt_cli.commands.agreement import Agreement
from hyperopt_cli.commands.keeping import RunKeeper, bits_depend_on, usable_here
from hyperopt_cli.errors import (
    ANOTHER_RUN,
    HyperoptError,
    NoiseError,
    NonFiniteError,
    RankLostError,
    Remedy,
    ReversalError,
    Stopped,
    UsageError,
)
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.keeper import Keeper
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.modes import MODES, Measurements, Mode
from hyperopt_cli.modes.account import listed
from hyperopt_cli.modes.base import mode_from_state_dict
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.outer.descent import MOST_HALVINGS, OuterStep, Together, descend
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.recipe.schema import Recipe
from hyperopt_cli.recipe.sources import changed
from hyperopt_cli.run_directory.checkpoints import Checkpoints
from hyperopt_cli.run_directory.directory import SOURCES_CHANGED, RunDirectory
from hyperopt_cli.run_directory.environment import environment
from hyperopt_cli.run_directory.result import HeldOut, Point, Result, Score
from hyperopt_cli.run_directory.status import LiveStatus, State, reported
from hyperopt_cli.run_directory.stopping import StopFlag
from hyperopt_cli.run_directory.tensorboard import TensorBoardLog
from hyperopt_cli.stopping import only_after_steps


class Watcher(Protocol):
    """Whoever looks on: the live display, the plain lines, the JSON lines."""

    def inner(self, outer_step: int, replica: int, phase: str, done: int, steps: int) -> None:
        """An inner step is done."""

    def outer(self, step: OuterStep) -> None:
        """An outer step was measured."""

    def said(self, text: str) -> None:
        """Something that is no step, and that whoever looks on should know."""


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
    watcher: Watcher,
    flag: StopFlag | None = None,
    continued: bool = False,
    ranks: Ranks = ALONE,
    code: Code = NO_CODE,
) -> Execution:
    """Runs `experiment` and writes everything into `directory`.

    Args:
        experiment: built from `recipe`.
        recipe: with every default filled in, kept as resolved.yaml.
        written: the recipe's text as the user has it, kept as recipe.yaml.
        directory: a new one, or that of a run that is continued.
        watcher: told of every step.
        flag: set by signals; the run ends after the step in which it is set, or at the next place where it may stop.
        continued: from the newest checkpoint that can be used, or from the start if there is none at all.
        ranks: the processes that share the run; this is the lead, and the others `follow`.
        code: the user's own; other code than the checkpoint was made with is refused unless it says to go on.

    Raises:
        Stopped: the flag was set; what there was to keep is in a checkpoint.
        UsageError: the examples or the user's own code are others than those of the checkpoint.
        CheckpointError: none can be used.
        StorageError: something cannot be written; what was written before is intact.
    """
    flag, checkpoints = flag or StopFlag(), Checkpoints(directory.checkpoints)
    bits = bits_depend_on(experiment.device, ranks)
    digest = experiment.data_digest()
    tree = ranks.each(lambda: _left(checkpoints, bits, digest, code, watcher) if continued else {})
    num_measured = tree["outer"]["n"] if tree else 0
    if continued:
        directory.rewind_metrics(num_measured)
    if num_measured > experiment.descent.steps + 1:
        watcher.said(f"outer.steps is {experiment.descent.steps}; {num_measured - 1} were made before")
    directory.write_recipe(written, recipe.to_yaml())
    directory.write_environment(environment(str(experiment.device)) | {"sources": dict(code.sources)})
    record = _Record(experiment, time.perf_counter(), tree.get("record"))
    if files := changed(tree.get("sources", {}), code.sources):
        record.sources_changed.append({"outer_step": num_measured, "files": files})
    mode = mode_from_state_dict(tree["mode"], MODES.values()) if tree else experiment.mode
    measured = _Measured(mode, directory, tree.get("measurements"))
    if ranks.size > 1:
        tree = listed(tree)
    ranks.agreed((tree.get("outer"), mode.state_dict(), measured.now.state_dict()))
    said: dict[str, Any] = {SOURCES_CHANGED: record.sources_changed} if record.sources_changed else {}
    status = LiveStatus(directory.status, outer_step=max(0, num_measured - 1), mode=recipe.mode.name, **said)

    def rest() -> tuple[dict[str, Any], bool]:
        measured.write()
        state = {
            "record": record.state_dict(),
            "mode": measured.mode.state_dict(),
            "measurements": measured.now.state_dict(),
            "data": digest,
            "sources": dict(code.sources),
        }
        return state, record.best_is_new()

    keeper: Keeper = RunKeeper(checkpoints, recipe.checkpoint_every_s, flag, bits, rest)
    together: Together | None = None
    if ranks.size > 1:
        keeper = agreement = Agreement(ranks, flag, keeper)
        together = agreement.together
    told, error = _Told(status, watcher, measured), None
    with (
        reported(status),
        _log(experiment, directory, written, num_measured if continued else None) as log,
        _interruptible(record, directory, recipe.mode.name, flag),
        nullcontext() if ranks.size == 1 else only_after_steps(),
    ):
        try:
            record.score_start()
            for step in _descended(experiment, mode, measured.now, keeper, together, tree.get("outer"), ranks, told):
                if files := record.files_changed():
                    step.stats[SOURCES_CHANGED] = files
                record.add(step)
                measured.write()
                directory.append_metrics(step)
                log.log(step)
                watcher.outer(step)
                with suppress(Stopped):  # the outer loop is the next to know of it, and keeps this step first
                    record.score_start()
        except NonFiniteError as diverged:
            error = diverged
        result = _scored(record, directory, "done" if error is None else "diverged", recipe.mode.name)
        log.finish(result)
        if error is None:
            status.finish("done")
        else:
            status.finish("diverged", reason=str(error))
    return Execution(result, error)


def _left(
    checkpoints: Checkpoints, bits: dict[str, Any], digest: str | None, code: Code, watcher: Watcher
) -> dict[str, Any]:
    """What the newest checkpoint that can be used holds; nothing if there is none at all.

    Raises:
        UsageError: it is of a run on other data, or of other code.
    """
    checkpoints.clean()
    found = checkpoints.newest()
    if found is None:
        watcher.said("there is no checkpoint: started again")
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
        watcher.said(f"{', '.join(files)} changed since {found.name} was made; goes on anyway, and the record says so")
    if files and tree["outer"]["inner"]:  # a training run is of one code
        watcher.said(f"outer step {tree['outer']['n']} starts again: it was begun with other code")
        tree = {**tree, "outer": {**tree["outer"], "inner": []}}
    for said in (*found.passed_over, *([left_out] if left_out else []), f"continued from {found.name}"):
        watcher.said(said)
    return tree


class _Told:
    """Passes on what happens between two outer steps."""

    def __init__(self, status: LiveStatus, watcher: Watcher, measured: "_Measured") -> None:
        self._status, self._watcher, self._measured = status, watcher, measured

    def inner(self, n: int, replica: int, phase: str, done: int, steps: int) -> None:
        self._status.beat(outer_step=n)
        self._watcher.inner(n, replica, phase, done, steps)

    def halved(self, n: int, halvings: int, why: NonFiniteError) -> None:
        what = "" if isinstance(why, NoiseError) else f"{why}; "  # noise is in the log, which is told too
        self._watcher.said(f"outer step {n}: {what}its step is halved ({halvings} of {MOST_HALVINGS})")

    def smaller(self, n: int, mode: Mode, why: str) -> None:
        self._measured.mode = mode
        self._watcher.said(f"outer step {n}: {why}")

    def begun_again(self, n: int, why: ReversalError) -> None:
        self._watcher.said(f"outer step {n} starts again without its checkpoint: {why}")


def _descended(
    experiment: Experiment,
    mode: Mode,
    measurements: Measurements,
    keeper: Keeper,
    together: Together | None,
    resume_from: Any,
    ranks: Ranks,
    told: _Told | None = None,
) -> Iterator[OuterStep]:
    """The descent of an experiment."""
    return descend(
        experiment.problem,
        experiment.space,
        experiment.descent,
        mode,
        experiment.seed,
        None if told is None else told.inner,
        None if told is None else told.halved,
        keeper,
        resume_from,
        ranks,
        together,
        None if told is None else told.smaller,
        None if told is None else told.begun_again,
        measurements,
    )


def follow(experiment: Experiment, flag: StopFlag, ranks: Ranks) -> None:
    """The part of a rank that is not the lead: it measures and steps with the others, and writes nothing.

    Raises:
        HyperoptError: as the lead does.
    """
    ranks.each(lambda: None)  # the lead reads its checkpoint
    of_lead: tuple[Any, dict[str, Any], dict[str, Any]] = ranks.agreed((None, {}, {}))
    resume_from, settings, measured = of_lead
    mode, keeper = mode_from_state_dict(settings, MODES.values()), Agreement(ranks, flag, None)
    measurements = Measurements()
    measurements.load_state_dict(measured)
    with only_after_steps():
        for _ in _descended(experiment, mode, measurements, keeper, keeper.together, resume_from, ranks):
            pass


@contextmanager
def _interruptible(record: "_Record", directory: RunDirectory, mode: str, flag: StopFlag) -> Iterator[None]:
    """Leaves the result of a run that is ended; who sends a signal does not wait for a test split."""
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


def _scored(record: "_Record", directory: RunDirectory, status: State, mode: str, scored: bool = True) -> Result:
    """The result, written without the test split first: what was tuned is kept, whatever fails there."""
    result = record.result(status, mode, scored=False)
    directory.write_result(result)
    if scored:
        result = record.result(status, mode)
        directory.write_result(result)
    return result


def _log(experiment: Experiment, directory: RunDirectory, written: str, from_step: int | None) -> TensorBoardLog:
    """A continued run draws schedules beside those that it had started with, and hides steps that it repeats."""
    if not from_step:  # whatever there was is hidden
        return TensorBoardLog(directory.tensorboard, recipe=written, purge_step=from_step)
    space = experiment.space
    start = space.courses(space.natural(space.initial()))
    return TensorBoardLog(directory.tensorboard, purge_step=from_step, start=start)


class _Measured:
    """The mode of a run, and what its hypergradients have measured, which is in the run directory too.

    Args:
        mode: that the run begins with.
        directory: of the run.
        state: of the checkpoint that the run resumes from; it goes before what is in the directory.

    Attributes:
        mode: the recipe's, or a smaller one that is taken in its place since memory was lacking.
        now: what is measured so far.
    """

    def __init__(self, mode: Mode, directory: RunDirectory, state: Mapping[str, Any] | None) -> None:
        self.mode, self.now, self._directory = mode, Measurements(), directory
        with suppress(KeyError, TypeError, AttributeError):  # of another version: measured again
            self.now.load_state_dict(directory.read_measurements())
        if state is not None:
            self.now.load_state_dict(state)
        self._written = self.now.state_dict()

    def write(self) -> None:
        """Writes what is measured, where there is more of it than was written."""
        state = self.now.state_dict()
        if state != self._written:
            self._written = state
            self._directory.write_measurements(state)


class _Record:
    """The start and the best so far, with what the test split says of them.

    Attributes:
        sources_changed: from which outer step on other code was run than before, and which of its files had changed.
    """

    def __init__(self, experiment: Experiment, began: float, kept: Mapping[str, Any] | None = None) -> None:
        self._experiment, self._began = experiment, began
        self._initial: Point | None = None
        self._initial_score: Score | None = None
        self._best: Point | None = None
        self._best_params: Params = {}
        self._mode: str | None = None  # what `auto` has chosen
        self._kept_best: int | None = None  # the best that is in a checkpoint
        self.sources_changed: list[dict[str, Any]] = []
        if kept is not None:
            self._began -= kept["wall_s"]
            self._initial, self._best = (point and Point(**point) for point in (kept["initial"], kept["best"]))
            self._initial_score = kept["initial_score"] and Score(**kept["initial_score"])
            self._best_params = {name: w.to(experiment.device) for name, w in kept["best_params"].items()}
            self._mode, self._kept_best = kept["mode"], kept["kept_best"]
            self.sources_changed += kept.get(SOURCES_CHANGED, [])

    @property
    def has_any(self) -> bool:
        """Whether a training run was measured."""
        return self._initial is not None

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it."""
        return {
            "wall_s": time.perf_counter() - self._began,
            "initial": self._initial and asdict(self._initial),
            "initial_score": self._initial_score and asdict(self._initial_score),
            "best": self._best and asdict(self._best),
            "best_params": self._best_params,
            "mode": self._mode,
            "kept_best": self._kept_best,
            SOURCES_CHANGED: self.sources_changed,
        }

    def files_changed(self) -> list[str]:
        """All files that are not, or were not for a while, as they were when the run began."""
        return sorted({file for each in self.sources_changed for file in each["files"]})

    def best_is_new(self) -> bool:
        """Whether the best is in no checkpoint yet; asked when one is written."""
        best = None if self._best is None else self._best.outer_step
        is_new, self._kept_best = best != self._kept_best, best
        return is_new

    def add(self, step: OuterStep) -> None:
        """Keeps w_T of the best."""
        point, self._mode = Point.of(step), step.stats.get("mode")
        if self._initial is None:
            self._initial = point
        if self._best is None or point.validation_loss < self._best.validation_loss:
            self._best, self._best_params = point, step.params

    def score_start(self) -> None:
        """Measures the test split at the start, if that is still to be done; then the start is the best so far."""
        if self._initial is not None and self._initial_score is None:
            self._initial_score = self._score(self._best_params, 0)

    def result(self, status: State, mode: str, scored: bool = True) -> Result:
        """What came out so far; the test split is measured at the best, if there is time for that."""
        held_out = None
        if scored and self._initial_score is not None and self._best is not None:
            best = (
                self._initial_score
                if self._best == self._initial
                else self._score(self._best_params, self._best.outer_step)
            )
            held_out = HeldOut(self._initial_score, best) if best is not None else None
        wall_s = time.perf_counter() - self._began
        bias = self._experiment.mode.bias(self._experiment.steps)
        return Result(
            status,
            self._mode or mode,
            self._initial,
            self._best,
            held_out,
            wall_s,
            bias,
            fixed={name: knob.initial.tolist() for name, knob in self._experiment.space.fixed().items()},
            sources_changed=self.sources_changed,
        )

    def _score(self, params: Params, outer_step: int) -> Score | None:
        try:
            figures = self._experiment.test(params, outer_step)
        except (HyperoptError, KeyboardInterrupt):
            raise
        except Exception as error:
            if is_lacking(error):
                raise
            raise UsageError(
                f"the test split can't be scored: {type(error).__name__}: {error}. What was reached is in result.json"
            ) from error
        return None if figures is None else Score(figures.loss, figures.accuracy)
