"""Batches divided among ranks: gradients and products are summed, in every mode."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.errors import DatasetError, RecipeError
from hyperopt_cli.instantiate import build, check_dividing
from hyperopt_cli.modes import Hypergradient, hypergradient
from hyperopt_cli.ranks.group import Ranks
from hyperopt_cli.recipe.schema import Recipe
from tests.instantiate.recipes import recipe_of
from tests.ranks.processes import on_ranks, raised

MODES: dict[str, dict[str, Any]] = {
    "forward": {"name": "forward"},
    "forward, all engines one by one": {"name": "forward", "engine": "reverse_over_reverse_loop"},
    "reverse": {"name": "reverse"},
    "reverse with slots": {"name": "reverse", "slots": 3},
    "reversible": {"name": "reversible"},
}
TUNED = {
    "lr": {"initial": 0.05, "schedule": {"windows": 2}},
    "momentum": 0.5,
    "weight_decay": 1e-3,
    "l2": 1e-3,
}


def recipe(folder: Path, **changed: Any) -> Recipe:
    return recipe_of(folder, **{"hyperparameters": TUNED, **changed})


def result(made: Recipe, ranks: Ranks) -> Hypergradient:
    experiment = build(made, ("tests.ranks.models",), ranks)
    check_dividing(experiment, made)
    hyper = experiment.space.natural(experiment.space.initial())
    out = hypergradient(experiment.problem(experiment.seed), hyper, experiment.mode, ranks=ranks)
    return out._replace(stats={"inner_loss": out.stats["inner_loss"]})


def on(num: int, folder: Path, **changed: Any) -> list[Hypergradient]:
    return raised(on_ranks(num, "batch", partial(result, recipe(folder, **changed))))


def close(a: Hypergradient, b: Hypergradient, rtol: float) -> None:
    for x, y in ((a.value, b.value), (a.stats["inner_loss"], b.stats["inner_loss"])):
        torch.testing.assert_close(x, y, rtol=rtol, atol=0.0)
    for name in a.grad:
        torch.testing.assert_close(a.grad[name], b.grad[name], rtol=rtol, atol=0.0)


@pytest.mark.parametrize("mode", MODES)
def test_two_and_three_ranks_agree_with_one(mode: str, tmp_path: Path) -> None:
    (alone,) = on(1, tmp_path, mode=MODES[mode])
    assert all((value != 0).all() for value in alone.grad.values())
    for num in (2, 3):  # 16 examples in 6 + 5 + 5, and 5 chunks of the validation split
        ranks = on(num, tmp_path, mode=MODES[mode])
        for each in ranks:
            close(each, alone, 1e-11)
            assert torch.equal(each.grad["lr"], ranks[0].grad["lr"])


@pytest.mark.parametrize("mode", MODES)
def test_so_they_do_in_single_precision(mode: str, tmp_path: Path) -> None:
    (alone,) = on(1, tmp_path, mode=MODES[mode], precision="float32", dataset=LARGE)
    for each in on(2, tmp_path, mode=MODES[mode], precision="float32", dataset=LARGE):
        close(each, alone, 1e-4 if mode == "reversible" else 1e-5)


LARGE = {"call": "digits", "batch_size": 64, "outer_batch_size": 100}


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
def test_with_a_chunk_size_normalisation_and_dropout_are_those_of_the_chunks(mode: str, tmp_path: Path) -> None:
    changed = {
        "model": {"call": "tests.ranks.models.normalised", "dropout": 0.2},
        "allow": ("tests.ranks.models",),
        "dataset": {"call": "digits", "batch_size": 32, "chunk_size": 8, "outer_batch_size": 100},
        "mode": mode,
    }
    (alone,) = on(1, tmp_path, **changed)
    for each in on(3, tmp_path, **changed):
        close(each, alone, 1e-10)


@pytest.mark.parametrize(
    ("model", "culprit"),
    [({"call": "tests.ranks.models.normalised"}, "BatchNorm1d"), ({"call": "mlp", "dropout": 0.3}, "Dropout")],
)
def test_without_one_they_are_refused_with_the_reason(model: dict[str, Any], culprit: str, tmp_path: Path) -> None:
    made = recipe(tmp_path, model=model, allow=("tests.ranks.models",))
    for error in on_ranks(2, "batch", partial(result, made)):
        assert isinstance(error, RecipeError)
        assert "not the mean of those of its parts" in str(error)
        assert culprit in str(error)
        assert "dataset.chunk_size, up to 8" in str(error)


def test_ranks_with_no_chunk_of_the_validation_split_add_nothing(tmp_path: Path) -> None:
    dataset = {"call": "digits", "batch_size": 16, "outer_batch_size": 1000}
    (alone,) = on(1, tmp_path, dataset=dataset)
    for each in on(2, tmp_path, dataset=dataset):
        close(each, alone, 1e-11)


def test_a_batch_that_ranks_do_not_divide_evenly_has_a_part_for_each(tmp_path: Path) -> None:
    dataset = {"call": "digits", "batch_size": 5}
    (alone,) = on(1, tmp_path, dataset=dataset)
    for each in on(4, tmp_path, dataset=dataset):
        close(each, alone, 1e-11)


def test_as_many_slots_as_fit_are_tried_where_a_rank_has_no_chunk_of_the_validation_split(tmp_path: Path) -> None:
    changed = {
        "dataset": {"call": "digits", "batch_size": 16, "outer_batch_size": 1000},
        "mode": {"name": "reverse", "slots": "auto"},
    }
    (alone,) = on(1, tmp_path, **changed)
    for each in on(2, tmp_path, **changed):
        close(each, alone, 1e-11)


def test_a_rank_whose_data_are_missing_ends_all(tmp_path: Path) -> None:
    made = recipe(tmp_path)

    def work(ranks: Ranks) -> Any:
        def built() -> Any:
            if ranks.rank == 1:
                raise DatasetError("nothing there")
            return build(made, ranks=ranks)

        return ranks.each(built)

    for error in on_ranks(2, "batch", work):
        assert isinstance(error, DatasetError)


def test_batches_that_are_too_small_are_refused(tmp_path: Path) -> None:
    dataset = {"call": "digits", "batch_size": 2}
    for error in on_ranks(3, "batch", partial(result, recipe(tmp_path, dataset=dataset))):
        assert "a batch of 2 for 3 ranks" in str(error)
    dataset = {"call": "digits", "batch_size": 16, "chunk_size": 8}
    for error in on_ranks(3, "batch", partial(result, recipe(tmp_path, dataset=dataset))):
        assert "2 chunks of a batch for 3 ranks" in str(error)
