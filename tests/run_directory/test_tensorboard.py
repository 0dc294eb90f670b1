import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperopt_cli.run_directory.tensorboard import MAX_POINTS, TensorBoardLog
from tests.run_directory.example import result, step


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(folder: Path, tag: str) -> dict[int, float]:
    found = events(folder).Scalars(tag)
    assert len({event.step for event in found}) == len(found)
    return {event.step: event.value for event in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorboard")
    with TensorBoardLog(folder, recipe="steps: 1200\nmode: forward\n") as log:
        for n in range(4):
            log.on_outer_step(step(n))
        log.on_end(result())
    return folder


@pytest.mark.parametrize("n", range(4))
def test_losses_and_costs_come_back(folder: Path, n: int) -> None:
    expected = step(n)
    wanted = {
        "loss/validation": expected.validation_loss,
        "loss/training": expected.training_loss,
        "cost/wall_s": expected.stats["wall_s"],
        "cost/peak_bytes": expected.stats["peak_bytes"],
    }
    for tag, value in wanted.items():
        assert scalars(folder, tag)[n] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("tag", "name", "index"),
    [
        ("lr/0", "lr", (0,)),
        ("lr/6", "lr", (6,)),
        ("momentum", "momentum", ()),
        ("weight_decay/1/0", "weight_decay", (1, 0)),
    ],
)
def test_every_element_of_a_small_vector_has_its_curve(
    folder: Path, tag: str, name: str, index: tuple[int, ...]
) -> None:
    natural = scalars(folder, f"hyperparameters/{tag}")
    gradient = scalars(folder, f"hypergradients/{tag}")
    for n in range(4):
        assert natural[n] == pytest.approx(step(n).hyperparameters[name][index].item(), rel=1e-6)
        assert gradient[n] == pytest.approx(step(n).hypergradient[name][index].item(), rel=1e-6)


def test_a_large_vector_has_a_histogram_and_three_curves(folder: Path) -> None:
    tags = events(folder).Tags()
    assert {"hyperparameters/data_weights", "hypergradients/data_weights"} == set(tags["histograms"])
    curves = {tag for tag in tags["scalars"] if tag.startswith("hyperparameters/data_weights")}
    assert curves == {f"hyperparameters/data_weights/{key}" for key in ("mean", "min", "max")}
    assert scalars(folder, "hyperparameters/data_weights/max")[3] == pytest.approx(4.5)


def test_the_inner_loss_is_thinned_to_its_first_and_last_step(folder: Path) -> None:
    curve = scalars(folder / "inner_loss" / "outer_0003", "inner_loss")
    assert len(curve) == MAX_POINTS
    assert {0, 1199} <= set(curve)
    loss = step(3).inner_loss
    assert all(value == pytest.approx(loss[t].item(), rel=1e-5, abs=1e-7) for t, value in curve.items())


def test_a_short_inner_loss_is_kept_whole(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path) as log:
        log.on_outer_step(step(0, horizon=30))
    assert list(scalars(tmp_path / "inner_loss" / "outer_0000", "inner_loss")) == list(range(30))


def test_learned_schedules_are_pictured_and_single_numbers_are_not(folder: Path) -> None:
    accumulator = events(folder)
    assert set(accumulator.Tags()["images"]) == {"schedules/lr", "schedules/weight_decay"}
    assert [image.step for image in accumulator.Images("schedules/lr")] == [0, 1, 2, 3]


def test_recipe_layout_and_hparams_are_there(folder: Path) -> None:
    accumulator = events(folder)
    assert b"mode: forward" in accumulator.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]
    assert b"hyperparameters/lr(/.*)?$" in accumulator.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    session = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert all(key in session for key in (b"initial lr", b"initial weight_decay/1/1", b"mode"))
    assert b"initial lr/3" not in session  # all windows start alike
    assert scalars(folder, "best/validation_loss") == {3: pytest.approx(step(3).validation_loss)}


def test_the_test_split_has_its_two_points(folder: Path) -> None:
    assert scalars(folder, "test/accuracy") == {0: pytest.approx(0.81), 3: pytest.approx(0.93)}
    assert scalars(folder, "test/loss") == {0: pytest.approx(0.6), 3: pytest.approx(0.3)}


def test_a_resumed_run_shows_each_step_once_and_keeps_the_inner_curves(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path) as log:
        for n in range(4):
            log.on_outer_step(step(n))
    with TensorBoardLog(tmp_path, purge_step=2, start=step(0).schedules) as log:
        log.on_outer_step(step(2)._replace(validation_loss=9.0))
    assert scalars(tmp_path, "loss/validation") == {
        0: pytest.approx(step(0).validation_loss),
        1: pytest.approx(step(1).validation_loss),
        2: 9.0,
    }
    for n in range(3):
        assert len(scalars(tmp_path / "inner_loss" / f"outer_{n:04d}", "inner_loss")) == MAX_POINTS


def test_values_that_are_not_finite_are_logged(tmp_path: Path) -> None:
    broken = {name: torch.full_like(value, float("nan")) for name, value in step(0).hypergradient.items()}
    with TensorBoardLog(tmp_path) as log:
        log.on_outer_step(step(0)._replace(hypergradient=broken, validation_loss=float("inf")))
        log.on_end(replace(result(), test=None))
    assert scalars(tmp_path, "loss/validation") == {0: float("inf")}


def test_the_file_of_a_continued_run_comes_last_however_soon_it_is_continued(tmp_path: Path) -> None:
    """Among files of one second their number would decide, as text: 10 before 9."""
    names = []
    for n in range(12):
        with TensorBoardLog(tmp_path, purge_step=None if n < 11 else 0):
            (new,) = {path.name for path in tmp_path.glob("events.out.*")} - set(names)
            names.append(new)
    assert max(names) == names[-1]


def test_the_file_of_a_continued_run_comes_last_where_the_clock_of_the_machine_before_was_ahead(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path) as log:
        for n in range(3):
            log.on_outer_step(step(n))
    (ahead,) = tmp_path.glob("events.out.*")
    ahead.rename(re.sub(r"\.\d{10}\.", f".{int(time.time()) + 3600}.", str(ahead)))
    with TensorBoardLog(tmp_path, purge_step=2) as log:
        log.on_outer_step(step(2)._replace(validation_loss=9.0))
    assert list(scalars(tmp_path, "loss/validation").values())[2:] == [9.0]
