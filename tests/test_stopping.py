"""A run that is asked to end between its steps, wherever it is, does so soon; what was measured goes on from there."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from hyperopt_cli import Forward, Reverse, hypergradient
from hyperopt_cli.data.batches import Loading, load
from hyperopt_cli.data.splits import as_splits
from hyperopt_cli.errors import Stopped
from hyperopt_cli.modes import Mode
from hyperopt_cli.run_directory.signals import StopFlag
from hyperopt_cli.stopping import may_stop, stoppable, stopped_by
from tests.cases import CASES
from tests.test_resume import MODES, recipe, run, written

REVERSIBLE, FORWARD = MODES["reversible"], MODES["forward"]
# where a signal comes, and for the how manieth time that is entered; the outer steps that are measured by then
PLACES: dict[str, tuple[dict[str, Any], str, str, int, int]] = {
    "the trial for a radix": (REVERSIBLE, "hyperopt_cli.modes.reversible", "chosen", 5, 2),
    "E, of forward": (FORWARD, "hyperopt_cli.modes.forward", "outer_objective", 4, 1),
    "E, of reverse": (MODES["reverse"], "hyperopt_cli.modes.adjoint.sweep", "outer_objective", 4, 1),
    "E, of reversible": (REVERSIBLE, "hyperopt_cli.modes.adjoint.sweep", "outer_objective", 4, 1),
    "the choice of an engine": ({"name": "forward"}, "hyperopt_cli.checks.engine_judge", "chosen", 1, 0),
    "the choice to compile": ({"name": "reverse"}, "hyperopt_cli.modes.compilation", "decide", 1, 0),
    "the test split at the start": (FORWARD, "hyperopt_cli.instantiate", "Experiment.test", 1, 1),
    "the test split at the end": (FORWARD, "hyperopt_cli.instantiate", "Experiment.test", 2, 4),
}


def entered(module: str, name: str, at: int, flag: StopFlag, patched: pytest.MonkeyPatch) -> list[str]:
    """Sets the flag when a function is entered for the `at`th time; lists what it then came to."""
    *within, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in within:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, last)
    num, came = 0, []

    def function(*given: Any, **named: Any) -> Any:
        nonlocal num
        num += 1
        if num == at:
            flag.signal = "SIGTERM"
            came.append("entered")
        result = original(*given, **named)
        if num == at:
            came.append("ended")
        return result

    patched.setattr(owner, last, function)
    return came


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = {}
    for name, mode in MODES.items():
        folder = tmp_path_factory.mktemp(name)
        run(folder / "run", recipe(folder, mode, checkpoint_every_s=1e9))
        out[name] = written(folder / "run")
    return out


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_a_run_between_its_steps_and_nothing_is_lost(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    mode, module, name, at, measured = PLACES[place]
    made, folder, flag = recipe(tmp_path, mode, checkpoint_every_s=1e9), tmp_path / "run", StopFlag()
    with monkeypatch.context() as patched:
        came = entered(module, name, at, flag, patched)
        with pytest.raises(Stopped):
            run(folder, made, flag=flag)
        assert came == ["entered"]  # it has not come to its end
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("interrupted", "stopped by SIGTERM")
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert len((folder / "metrics.jsonl").read_text().splitlines() if measured else []) == measured
    watcher = run(folder, made)
    began = measured == 0 and not place.startswith("E")
    assert watcher.heard[0].startswith("there is no checkpoint" if began else f"continued from outer-00000{measured}")
    if mode in MODES.values():
        assert written(folder) == undisturbed[mode["name"]]


class Endless(Dataset[Any]):
    """Its examples have to be read one by one; after some of them the flag is set."""

    def __init__(self, flag: StopFlag, at: int) -> None:
        self.flag, self.at, self.num = flag, at, 0

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.num += 1
        if self.num == self.at:
            self.flag.signal = "SIGTERM"
        return torch.full((3,), float(i)), i % 2


@pytest.mark.parametrize("targets", [None, [i % 2 for i in range(100_000)]], ids=["read", "given"])
@pytest.mark.parametrize("residence", ["device", "stream"])
def test_a_data_set_is_not_read_to_its_end(residence: Any, targets: list[int] | None) -> None:
    examples = Endless(flag := StopFlag(), at := 2500)
    if targets is not None:
        examples.targets = targets  # type: ignore[attr-defined]
    with flag, pytest.raises(Stopped):
        load(as_splits(examples), Loading(residence=residence), seed=0, device=torch.device("cpu"), dtype=torch.float32)
    assert at <= examples.num <= at + 2000


class Late:
    """A keeper to whom a signal comes just after it has said that nothing is due."""

    def __init__(self) -> None:
        self.num_asked, self.has_come = 0, False
        self.saved: dict[str, Any] | None = None

    def due(self) -> bool:
        before, self.num_asked = self.has_come, self.num_asked + 1
        self.has_come = self.has_come or self.num_asked == 5
        return before

    def save(self, state: dict[str, Any]) -> None:
        self.saved = state
        raise Stopped("SIGTERM")

    def barrier(self) -> None:
        pass

    def end(self) -> None:
        if self.has_come:
            raise Stopped("SIGTERM")


@pytest.mark.parametrize("mode", [Forward(engine="folded", compile=False), Reverse(compile=False)], ids=repr)
def test_a_signal_just_after_the_question_finds_the_step_kept(mode: Mode) -> None:
    _, problem, hyper = CASES["momentum"]
    keeper = Late()
    with stopped_by(keeper.end), pytest.raises(Stopped):
        hypergradient(problem, hyper, mode, keeper=keeper)
    assert keeper.saved is not None
    assert keeper.saved["progress"] >= 3


def test_without_anybody_who_asks_nothing_stops() -> None:
    flag = StopFlag()
    flag.signal = "SIGTERM"
    assert list(stoppable([1, 2])) == [1, 2]
    with flag, pytest.raises(Stopped):
        may_stop()
    may_stop()
