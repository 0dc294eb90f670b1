"""Data sets that are deleted while a run streams them: a clear end, and a run that goes on once they are back."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.cli.display import PlainLines
from hyperopt_cli.data.streaming import Streaming
from hyperopt_cli.errors import DatasetError
from hyperopt_cli.run_directory.checkpoints import Checkpoints
from tests.data.test_image_folder import fill
from tests.instantiate.recipes import recipe_of
from tests.test_resume import Watching, run, written

MODES = [{"name": "forward", "engine": "folded", "compile": False}, {"name": "reverse", "slots": 3, "compile": False}]


def recipe(folder: Path, workers: int, mode: dict[str, Any]) -> Any:
    pictures = {"call": "image_folder", "root": str(folder / "pictures"), "residence": "stream", "workers": workers}
    return recipe_of(
        folder,
        dataset={**pictures, "batch_size": 3, "validation_fraction": 0.25},
        steps=8,
        hyperparameters={"lr": 0.05, "momentum": 0.5},
        mode=mode,
        outer={"optimizer": "adam", "lr": 0.1, "steps": 2},
        checkpoint_every_s=0.0,
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", MODES, ids=["forward", "reverse"])
def test_it_ends_with_the_file_named_and_goes_on_once_it_is_back(
    workers: int, mode: dict[str, Any], tmp_path: Path
) -> None:
    pictures, aside, folder = tmp_path / "pictures", tmp_path / "aside", tmp_path / "run"
    fill(pictures, count=12)
    made = recipe(tmp_path, workers, mode)

    def delete(num: int) -> None:
        if num == 13:
            shutil.copytree(pictures, aside)
            shutil.rmtree(pictures)

    with pytest.raises(DatasetError, match=rf"^{pictures}/\w+/\d+\.png can't be read \(No such file or directory\): "):
        run(folder, made, Watching(delete))
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert str(pictures) in status["reason"]
    kept = Checkpoints(folder / "checkpoints").newest()
    assert kept is not None
    assert kept.passed_over == ()

    aside.rename(pictures)
    heard = run(folder, made).heard
    assert heard[0] == f"continued from {kept.name}"
    run(tmp_path / "undisturbed", made)
    assert written(folder) == written(tmp_path / "undisturbed")


@pytest.mark.parametrize(("every_s", "said"), [(0.0, "The last checkpoint, outer-00000"), (1e9, "no checkpoint yet")])
def test_the_command_says_how_to_go_on(
    every_s: float, said: str, tmp_path: Path, hyperopt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = fill(tmp_path / "pictures", count=12)
    recipe(tmp_path, 0, MODES[0])
    heard: list[int] = []

    def inner(self: PlainLines, *step: Any) -> None:
        heard.append(1)
        if len(heard) == 5:
            pictures.rename(tmp_path / "elsewhere")

    with monkeypatch.context() as patched:
        patched.setattr(PlainLines, "on_inner_step", inner)
        command = ("run", tmp_path / "recipe.yaml", f"checkpoint_every_s={every_s}")
        code, _, err = hyperopt(*command, "--out", "there")
    assert code == 2
    assert f"{pictures}/" in err
    assert said in err
    assert "--resume there" in err
    assert "Traceback" not in err
    assert hyperopt(*command, "--resume", "there").code == 2  # it is not back yet
    (tmp_path / "elsewhere").rename(pictures)
    assert hyperopt(*command, "--resume", "there").code == 0


class Files:
    """A data set of one's own, a file for each example."""

    def __init__(self, root: Path, read: Callable[[Path], torch.Tensor]) -> None:
        self.root, self.read = root, read

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.read(self.root / f"{index}.pt"), 0


def killed(path: Path) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGBUS)
    return torch.zeros(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_of_ones_own_data_set_is_named(workers: int, tmp_path: Path) -> None:
    source = Streaming(Files(tmp_path, torch.load), torch.device("cpu"), workers)
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/3\.pt can't be read \(No such file or directory\)"):
        next(source.walk([torch.tensor([3])]))


def test_a_process_that_is_killed_as_it_reads_is_no_defect(tmp_path: Path) -> None:
    source = Streaming(Files(tmp_path, killed), torch.device("cpu"), 1)
    with pytest.raises(DatasetError, match=r"^a process that reads the data set has ended: DataLoader worker"):
        source.reader(lambda t: torch.tensor([t]))(0)
