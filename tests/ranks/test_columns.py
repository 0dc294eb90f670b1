"""Columns divided among ranks: the bits of one, whatever the engine, the model and the number of ranks."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.checks import choice
from hyperopt_cli.errors import UsageError
from hyperopt_cli.instantiate import build
from hyperopt_cli.modes import Hypergradient, hypergradient
from hyperopt_cli.modes.columns import divided
from hyperopt_cli.ranks.group import Ranks
from hyperopt_cli.recipe.schema import Recipe
from tests.instantiate.recipes import recipe_of
from tests.ranks.processes import on_ranks, raised

NINE = {
    "lr": {"initial": 0.05, "schedule": {"windows": 6}},
    "momentum": 0.5,
    "weight_decay": 1e-3,
    "init_scale": 1.0,
}


def recipe(folder: Path, **changed: Any) -> Recipe:
    return recipe_of(folder, **{"hyperparameters": NINE, "steps": 8, **changed})


def result(made: Recipe, ranks: Ranks) -> Hypergradient:
    experiment = build(made, ("tests.ranks.models",), ranks)
    hyper = experiment.space.natural(experiment.space.initial())
    out = hypergradient(experiment.problem(experiment.seed), hyper, experiment.mode, ranks=ranks)
    return out._replace(stats={key: out.stats[key] for key in ("num_hvps", "num_gradients", "inner_loss")})


def on(num: int, folder: Path, **changed: Any) -> list[Hypergradient]:
    return raised(on_ranks(num, "columns", partial(result, recipe(folder, **changed))))


def same(a: Hypergradient, b: Hypergradient) -> None:
    assert torch.equal(a.value, b.value)
    assert all(torch.equal(a.grad[name], b.grad[name]) for name in a.grad)
    assert all(torch.equal(a.params[name], b.params[name]) for name in a.params)
    assert torch.equal(a.stats["inner_loss"], b.stats["inner_loss"])
    assert [a.stats[key] for key in ("num_hvps", "num_gradients")] == [
        b.stats[key] for key in ("num_hvps", "num_gradients")
    ]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("engine", ["folded", "forward_over_reverse", "reverse_over_reverse", "auto"])
def test_two_and_three_ranks_have_the_bits_of_one(engine: str, precision: str, tmp_path: Path) -> None:
    mode = {"name": "forward", "engine": engine, "columns_at_once": 2, "compile": False}
    (alone,) = on(1, tmp_path, mode=mode, precision=precision)
    assert any((value != 0).all() for value in alone.grad.values())
    for num in (2, 3):
        for each in on(num, tmp_path, mode=mode, precision=precision):
            same(each, alone)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_so_they_have_with_other_optimizers(optimizer: str, tmp_path: Path) -> None:
    changed = {"optimizer": {"name": optimizer}, "hyperparameters": {key: NINE[key] for key in ("lr", "weight_decay")}}
    mode = {"name": "forward", "engine": "folded", "columns_at_once": 3, "compile": False}
    (alone,) = on(1, tmp_path, mode=mode, **changed)
    for each in on(2, tmp_path, mode=mode, **changed):
        same(each, alone)


def test_normalisation_over_the_batch_is_no_hindrance_and_dropout_neither(tmp_path: Path) -> None:
    model = {"call": "tests.ranks.models.normalised", "dropout": 0.2}
    mode = {"name": "forward", "engine": "forward_over_reverse", "columns_at_once": 2, "compile": False}
    (alone,) = on(1, tmp_path, mode=mode, model=model, allow=("tests.ranks.models",))
    for each in on(2, tmp_path, mode=mode, model=model, allow=("tests.ranks.models",)):
        same(each, alone)


def test_without_a_columns_at_once_all_ranks_agree_with_one_to_rounding(tmp_path: Path) -> None:
    (alone,) = on(1, tmp_path, mode={"name": "forward", "compile": False})
    first, second = on(2, tmp_path, mode={"name": "forward", "compile": False})
    same(first, second)
    for name, grad in alone.grad.items():
        torch.testing.assert_close(first.grad[name], grad, rtol=1e-12, atol=0.0)


def test_more_ranks_than_blocks_and_compiled_steps_are_refused(tmp_path: Path) -> None:
    for mode, said in (
        (
            {"name": "forward", "columns_at_once": 8},
            "for 8 columns in 1 blocks; use at most 1 ranks, columns_at_once of at most 4",
        ),
        ({"name": "forward", "compile": True}, "compile"),
    ):
        few = {"lr": {"initial": 0.1, "schedule": {"windows": 8}}}
        for error in on_ranks(2, "columns", partial(result, recipe(tmp_path, mode=mode, hyperparameters=few))):
            assert isinstance(error, UsageError)
            assert said in str(error)


@pytest.mark.parametrize(("num", "at_once", "size"), [(16, None, 2), (9, 2, 3), (5, 1, 5), (7, 4, 2), (3, None, 1)])
def test_every_column_is_carried_by_one_rank(num: int, at_once: int | None, size: int) -> None:
    blocks = [divided(num, at_once, rank, size) for rank in range(size)]
    assert sorted(k for own in blocks for block in own for k in block) == list(range(num))
    assert all(own for own in blocks)
    if at_once is not None:
        alone = divided(num, at_once)
        assert sorted(block for own in blocks for block in own) == alone


def test_the_engine_is_the_leads_whatever_another_rank_would_choose(tmp_path: Path) -> None:
    made = recipe(tmp_path, mode={"name": "forward", "engine": "auto", "columns_at_once": 2})

    def work(ranks: Ranks) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            names = ("reverse_over_reverse", "folded", "forward_over_reverse")
            patch.setattr(choice, "BY_DEFAULT", names[ranks.rank :] + names[: ranks.rank])
            return result(made, ranks)

    lead = recipe(tmp_path, mode={"name": "forward", "engine": "reverse_over_reverse", "columns_at_once": 2})
    (alone,) = raised(on_ranks(1, "columns", partial(result, lead)))
    for each in raised(on_ranks(3, "columns", work)):
        same(each, alone)
