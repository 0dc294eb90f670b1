"""Runs that are killed, signalled or damaged, and continued: they end with the bits of one that was left alone."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.callback import Callback
from hyperopt_cli.commands import keeping
from hyperopt_cli.commands.keeping import bits_depend_on
from hyperopt_cli.commands.run import execute
from hyperopt_cli.data.resident import Resident
from hyperopt_cli.errors import CheckpointError, Stopped, UsageError
from hyperopt_cli.instantiate import build
from hyperopt_cli.run_directory.checkpoints import MANIFEST, STATE, Checkpoints
from hyperopt_cli.run_directory.directory import LATEST, RunDirectory
from hyperopt_cli.run_directory.environment import environment
from hyperopt_cli.run_directory.signals import StopFlag
from hyperopt_cli.run_directory.status import LiveStatus
from tests.instantiate.recipes import recipe_of

MODES: dict[str, dict[str, Any]] = {
    "forward": {"name": "forward", "engine": "folded", "compile": False},
    "reverse": {"name": "reverse", "slots": 4, "compile": False},
    "reversible": {"name": "reversible", "compile": False},
}
STEPS, OUTER, ADAM = 12, 3, {"optimizer": "adam", "lr": 0.1, "replicas": 2}
# Methods of the outer loop, in reverse mode; the others are walked by adam.
METHODS: dict[str, dict[str, Any]] = {
    "auto": {"optimizer": "auto", "steps": OUTER},
    "auto over replicas": {"optimizer": "auto", "steps": OUTER, "replicas": 2, "budget": 30},
    "lbfgs": {"optimizer": "lbfgs", "steps": OUTER},
    "bayes": {"optimizer": "bayes", "steps": OUTER, "budget": 16},
}
# Steps there and back, each told of.
NUM_WATCHED = {name: (OUTER + 1) * 2 * STEPS * (1 if name == "forward" else 2) for name in MODES} | {
    "auto": 6 * STEPS + (OUTER + 1) * 2 * STEPS,
    "auto over replicas": 20 * STEPS,
    "lbfgs": (OUTER + 1) * 2 * STEPS,
    "bayes": 20 * STEPS,
}


class Watching(Callback):
    """Counts inner steps, and hears what is said."""

    def __init__(self, at_step: Callable[[int], None] = lambda num: None) -> None:
        self.num, self.heard, self._at_step = 0, [], at_step  # type: ignore[var-annotated]

    def on_inner_step(self, *step: Any) -> None:
        self.num += 1
        self._at_step(self.num)

    def on_message(self, text: str) -> None:
        self.heard.append(text)


def recipe_named(folder: Path, name: str, **changed: Any) -> Any:
    """By a mode, or by a method."""
    if name in METHODS:
        return recipe(folder, MODES["reverse"], outer=METHODS[name], **changed)
    return recipe(folder, MODES[name], **changed)


def recipe(folder: Path, mode: dict[str, Any], **changed: Any) -> Any:
    return recipe_of(
        folder,
        mode=mode,
        steps=STEPS,
        hyperparameters={"lr": {"initial": 0.01, "schedule": {"windows": 2}}, "momentum": 0.8, "weight_decay": 1e-3},
        **{"outer": {"optimizer": "adam", "lr": 0.1, "steps": OUTER, "replicas": 2}, "checkpoint_every_s": 0.0}
        | changed,
    )


def run(folder: Path, made: Any, watcher: Watching | None = None, flag: StopFlag | None = None) -> Watching:
    """Starts the run in `folder`, or continues it."""
    watcher = watcher or Watching()
    continued = folder.exists()
    with flag or StopFlag() as flag:
        experiment = build(made)
        directory = RunDirectory(folder) if continued else RunDirectory.create(folder, "run")
        execute(experiment, made, "as written", directory, watcher, flag, continued)
    return watcher


def written(folder: Path) -> dict[str, Any]:
    """Everything that has to be the same: metrics, the result and the curves, without times and memory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result, trials = json.loads((folder / "result.json").read_text()), []
    if (folder / "trials.jsonl").exists():
        trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for line in (*lines, *trials, result):
        for key in ("wall_s", "peak_bytes"):
            line.pop(key, None)
    curves = {}
    for each in (folder / "tensorboard", *(folder / "tensorboard").glob("trials")):
        events = EventAccumulator(str(each), size_guidance={"scalars": 0})
        events.Reload()
        curves |= {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    curves = {tag: curve for tag, curve in curves.items() if tag not in ("cost/wall_s", "cost/peak_bytes")}
    return {"metrics": lines, "trials": trials, "result": result, "curves": curves}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = {}
    for name in [*MODES, *METHODS]:
        folder = tmp_path_factory.mktemp(name)
        run(folder / "run", recipe_named(folder, name))
        out[name] = written(folder / "run")
    return out


def in_a_process(work: Callable[[], None]) -> int:
    """Runs `work` in a process of its own, and returns that process; the kernel may end it at any moment."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", [*MODES, *METHODS])
def test_killed_at_random_moments_and_continued_it_ends_with_the_same_bits(
    mode: str, kills: int, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    draw, made, folder = random.Random(kills), recipe_named(tmp_path, mode), tmp_path / "run"
    heard, moments = tmp_path / "heard", [draw.uniform(0.0, 0.4) for _ in range(kills)]
    pause_s = 1.2 * sum(moments) / NUM_WATCHED[mode]  # so that the last kill comes before the end

    def work(pause_s: float) -> None:
        watcher = Watching(lambda num: time.sleep(pause_s))
        watcher.on_message = lambda text: heard.write_text(text)  # type: ignore[method-assign,assignment]
        run(folder, made, watcher)

    for num, moment in enumerate(moments, 1):
        child = in_a_process(partial(work, pause_s))
        while num == kills and not (folder / "checkpoints" / LATEST).exists():
            time.sleep(0.01)  # on a busy machine all kills before this one may have come before the first checkpoint
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert os.waitstatus_to_exitcode(os.waitpid(in_a_process(partial(work, 0.0)), 0)[1]) == 0
    assert heard.read_text().startswith("continued from outer-0000")
    assert written(folder) == undisturbed[mode]


@pytest.mark.parametrize("mode", [*MODES, *METHODS])
def test_a_signal_ends_it_after_a_step_and_a_checkpoint(mode: str, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    made, folder, num = recipe_named(tmp_path, mode, checkpoint_every_s=1e9), tmp_path / "run", 0
    draw = random.Random(1)
    while True:
        flag, at = StopFlag(), draw.randrange(1, 40)

        def stop(done: int, flag: StopFlag = flag, at: int = at) -> None:
            if done == at:
                flag.signal = "SIGUSR1"

        watcher = Watching(stop)
        try:
            run(folder, made, watcher, flag)
        except Stopped:
            assert watcher.num - at in (0, 1)  # reversible has nothing to keep between the last step there and E
            status, num = json.loads((folder / "status.json").read_text()), num + 1
            assert (status["state"], status["reason"]) == ("interrupted", "stopped by SIGUSR1")
        else:
            break
    assert num >= 4
    assert written(folder) == undisturbed[mode]


def interrupted(folder: Path, made: Any, at: int) -> None:
    flag = StopFlag()

    def stop(done: int) -> None:
        if done == at:
            flag.signal = "SIGTERM"

    with pytest.raises(Stopped):
        run(folder, made, Watching(stop), flag)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    made, folder = recipe(tmp_path, MODES["forward"]), tmp_path / "run"
    interrupted(folder, made, 40)
    newest, before, *_ = Checkpoints(folder / "checkpoints").names()
    os.truncate(folder / "checkpoints" / newest / STATE, 100)
    watcher = run(folder, made)
    assert watcher.heard[0].startswith(f"{newest}: state.pt has 100 bytes")
    assert f"continued from {before}" in watcher.heard
    assert written(folder) == undisturbed["forward"]


def test_where_none_can_be_used_nothing_is_touched(tmp_path: Path) -> None:
    made, folder = recipe(tmp_path, MODES["forward"]), tmp_path / "run"
    interrupted(folder, made, 40)
    for name in Checkpoints(folder / "checkpoints").names():
        (folder / "checkpoints" / name / STATE).unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as raised:
        run(folder, made)
    assert raised.value.exit_code == 4
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("mode", ["forward", "reversible"])
def test_a_reversal_on_another_machine_starts_its_outer_step_again(
    mode: str, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    made, folder = recipe(tmp_path, MODES[mode]), tmp_path / "run"
    interrupted(folder, made, 20)
    newest = Checkpoints(folder / "checkpoints").names()[0]
    manifest = folder / "checkpoints" / newest / MANIFEST
    content = json.loads(manifest.read_text())
    assert content["bits_depend_on"] == bits_depend_on(torch.device("cpu"))
    manifest.write_text(json.dumps({**content, "bits_depend_on": {**content["bits_depend_on"], "threads": 77}}))
    watcher = run(folder, made)
    assert any("starts again" in said and "threads 77, now" in said for said in watcher.heard) == (mode == "reversible")
    assert written(folder) == undisturbed[mode]


def test_what_the_bits_depend_on_names_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depends = bits_depend_on(torch.device("cpu"))
    assert depends["device"] == f"cpu {environment()['device']}"
    assert depends["instructions"] == torch.backends.cpu.get_cpu_capability()
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    monkeypatch.setattr(keeping, "DRIVER", told)
    monkeypatch.setattr(keeping, "device_name", lambda device: "a GPU")
    depends = bits_depend_on(torch.device("cuda"))
    assert (depends["device"], depends["driver"], depends["cuda"]) == ("cuda a GPU", "550.54.15", torch.version.cuda)
    assert "cudnn" in depends


@pytest.mark.parametrize("at", [12 + 5, 24 + 12 + 5])  # on the way back of the first replica, and of the second
def test_a_reversal_that_fails_after_a_continuation_starts_its_outer_step_again(
    at: int, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """As on a machine whose gradients have other bits: a number of the state is another than on the way there."""
    made, folder = recipe(tmp_path, MODES["reversible"], checkpoint_every_s=1e9), tmp_path / "run"
    interrupted(folder, made, at)
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.newest()
    assert found is not None
    ((_, left),) = found.tree["outer"]["inner"]
    left["mode"]["past"]["held"]["numbers"][""]["w"][0] += 1
    progress = int(found.name.split("-")[2])
    checkpoints.write(0, progress, found.tree, found.bits_depend_on, is_best=False)
    watcher = run(folder, made)
    assert any(
        said.startswith("outer step 0 starts again without its checkpoint: reversible: the state at inner step")
        for said in watcher.heard
    )
    assert written(folder) == undisturbed["reversible"]


def test_a_run_that_is_done_can_be_made_longer(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    run(folder, recipe(tmp_path, MODES["reverse"], outer={**ADAM, "steps": 1}, checkpoint_every_s=1e9))
    run(folder, recipe(tmp_path, MODES["reverse"], outer={**ADAM, "steps": OUTER}, checkpoint_every_s=1e9))
    assert written(folder) == undisturbed["reverse"]


def test_done_and_continued_it_measures_nothing(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    made, folder = recipe(tmp_path, MODES["reverse"]), tmp_path / "run"
    run(folder, made)
    assert run(folder, made).num == 0
    assert written(folder) == undisturbed["reverse"]


def test_killed_between_its_end_and_its_status_it_has_one_end(
    tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, folder = recipe(tmp_path, MODES["reverse"]), tmp_path / "run"

    def killed(status: LiveStatus, *given: Any, **named: Any) -> None:
        raise SystemExit(1)

    with monkeypatch.context() as patched:
        patched.setattr(LiveStatus, "finish", killed)
        with pytest.raises(SystemExit):
            run(folder, made)
    assert len(written(folder)["curves"]["test/loss"]) == 2
    run(folder, made)
    assert written(folder) == undisturbed["reverse"]


def test_auto_goes_on_with_the_mode_that_it_had_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = recipe(tmp_path, {"name": "auto"}), tmp_path / "run"
    interrupted(folder, made, 20)

    def chooses_again(*given: Any) -> Any:
        raise AssertionError("it chose again")

    monkeypatch.setattr("hyperopt_cli.modes.auto.choice", chooses_again)
    run(folder, made)
    modes = {json.loads(line)["mode"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    assert len(modes) == 1


def test_a_run_is_not_continued_on_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = recipe(tmp_path, MODES["reverse"]), tmp_path / "run"
    interrupted(folder, made, 20)
    with monkeypatch.context() as patched:
        read = Resident.read
        patched.setattr(Resident, "read", lambda self, index: read(self, index - 1))
        with pytest.raises(UsageError, match="not those that the run began with"):
            run(folder, made)
    run(folder, made)


def test_fewer_outer_steps_than_were_made_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, recipe(tmp_path, MODES["reverse"], outer={**ADAM, "steps": 2}))
    told = run(folder, recipe(tmp_path, MODES["reverse"], outer={**ADAM, "steps": 1}))
    assert "outer.steps is 1; 2 were made before" in told.heard
    assert json.loads((folder / "status.json").read_text())["outer_step"] == 2
