import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.reading import Metrics, read, read_metrics
from hyperopt_cli.run_directory.status import LiveStatus
from tests.run_directory.example import result, step


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_default_directories_carry_the_recipe_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (RunDirectory.create(None, "my recipe").root for _ in range(2))
    assert first != second
    assert first.parent == Path("runs")
    assert first.name.startswith("my-recipe-")


def test_an_empty_directory_may_be_given(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, "digits").root == tmp_path


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="another --out"):
        RunDirectory.create(tmp_path, "digits")


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        RunDirectory.create(tmp_path / "file" / below, "digits")


def test_of_many_that_want_one_directory_one_gets_it(tmp_path: Path) -> None:
    def take(out: Path) -> bool:
        try:
            return bool(RunDirectory.create(out, "digits"))
        except UsageError:
            return False

    with ThreadPoolExecutor(8) as pool:
        for n in range(20):
            assert sum(pool.map(take, [tmp_path / str(n)] * 8)) == 1


def test_recipe_and_environment_are_kept_to_the_letter(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    directory.write_recipe("steps: 3  # ∇\n", "steps: 3\nseed: 0\n")
    directory.write_environment({"torch": "2.15.0"})
    assert directory.recipe.read_text(encoding="utf-8") == "steps: 3  # ∇\n"
    assert directory.resolved.read_text() == "steps: 3\nseed: 0\n"
    assert json.loads(directory.environment.read_text()) == {"torch": "2.15.0"}


def test_no_temporary_file_stays_when_a_document_cannot_be_written(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    directory.environment.mkdir()
    with pytest.raises(IsADirectoryError):
        directory.write_environment({})
    assert {path.name for path in directory.root.iterdir()} == {"environment.json", "tensorboard"}


def test_metrics_come_back_bit_for_bit(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    for n in range(3):
        directory.append_metrics(step(n))
    lines = read_metrics(directory.metrics)
    assert [line.outer_step for line in lines] == [0, 1, 2]
    for line in lines:
        expected = step(line.outer_step)
        assert line.validation_loss == expected.validation_loss
        assert line.training_loss == expected.training_loss
        assert (line.wall_s, line.peak_bytes) == (expected.stats["wall_s"], expected.stats["peak_bytes"])
        for field in ("hyperparameters", "hypergradient", "raw_hyperparameters", "raw_hypergradient"):
            for name, value in getattr(expected, field).items():
                assert torch.equal(torch.tensor(getattr(line, field)[name], dtype=torch.float64), value)


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    broken = {"lr": torch.tensor([float("nan"), float("-inf")])}
    directory.append_metrics(step(0)._replace(validation_loss=float("inf"), hypergradient=broken))
    json.loads(directory.metrics.read_text(), parse_constant=refuse)
    (line,) = read_metrics(directory.metrics)
    assert line.validation_loss == float("inf")
    assert str(line.hypergradient["lr"]) == "[nan, -inf]"


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    directory.append_metrics(step(0))
    with directory.metrics.open("a") as file:
        file.write('{"outer_step": 1, "validation_l')
    assert [line.outer_step for line in read_metrics(directory.metrics)] == [0]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    directory.append_metrics(step(0))
    with directory.metrics.open("a") as file:
        file.write('{"outer_step": 1}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl:2 is damaged"):
        read_metrics(directory.metrics)


def test_a_resumed_run_repeats_no_line(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    for n in range(4):
        directory.append_metrics(step(n))
    with directory.metrics.open("a") as file:
        file.write('{"outer_st')
    directory.rewind(2, 0)
    directory.append_metrics(step(2))
    assert [line.outer_step for line in read_metrics(directory.metrics)] == [0, 1, 2]


def test_a_run_reads_back_whole(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    status = LiveStatus(directory.status)
    assert read(directory.root).result is None
    directory.append_metrics(step(0))
    directory.write_result(result())
    status.finish("done")
    run = read(directory.root)
    assert (run.state, run.result, len(run.metrics)) == ("done", result(), 1)
    assert isinstance(run.metrics[0], Metrics)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no status\.json"):
        read(tmp_path)


def test_reading_and_writing_runs_imports_no_torch() -> None:
    program = "import sys\nfrom hyperopt_cli.run_directory import directory, reading\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_only_some_modes_write_comes_back(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "digits")
    of_some = {"bias": "truncated", "mode": "reverse:slots=4", "factors": {"momentum": "9/10"}}
    directory.append_metrics(step(0)._replace(stats={**step(0).stats, **of_some}))
    (line,) = read_metrics(directory.metrics)
    assert (line.bias, line.mode, line.factors) == ("truncated", "reverse:slots=4", {"momentum": "9/10"})
