"""What of a recipe is divided among ranks, and what cannot be."""

from pathlib import Path

import pytest

from hyperopt_cli.errors import RecipeError
from hyperopt_cli.recipe import Recipe, load
from hyperopt_cli.recipe.sharding import shard_of
from tests.cli.test_bad_input import GOOD

QUADRATIC = """\
model: {call: quadratic, eigenvalues: [1.0, 2.0], start: [1.0, 1.0]}
loss: output
optimizer: {name: sgd}
steps: 3
hyperparameters: {lr: {initial: 0.1, transform: log}}
outer: {optimizer: adam, lr: 0.05, steps: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path):
    def read(*overrides: str, text: str = GOOD) -> Recipe:
        (tmp_path / "r.yaml").write_text(text)
        return load(tmp_path / "r.yaml", overrides)

    return read


@pytest.mark.parametrize(
    ("overrides", "shard"),
    [
        (["mode=forward"], "columns"),
        (["mode=reverse"], "batch"),
        (["mode=reversible"], "batch"),
        (["mode=reverse", "outer.replicas=2"], "replicas"),
        (["mode=forward", "outer.replicas=3"], "replicas"),
        (["mode=forward", "shard=batch"], "batch"),
        (["mode=forward", "shard=columns", "outer.replicas=2"], "columns"),
        (["mode=auto", "outer.replicas=2"], "replicas"),
        (["mode=auto", "shard=batch"], "batch"),
    ],
)
def test_auto_takes_replicas_then_columns_then_batches_and_a_word_is_kept(recipe, overrides, shard):
    assert shard_of(recipe(*overrides), 2) == shard


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shard=replicas"], r"replicas: 2 ranks for 1 \(outer.replicas\)"),
        (["mode=reverse", "shard=columns"], "only mode: forward has columns, not reverse"),
        (["mode={name: reverse, compile: true}"], "leave mode.compile out"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_what_to_do(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        shard_of(recipe(*overrides), 2)
    shard_of(recipe(*overrides), 1)


def test_where_there_is_no_data_there_is_no_batch(recipe):
    with pytest.raises(RecipeError, match="no data set to take batches of"):
        shard_of(recipe("mode=reverse", text=QUADRATIC), 2)
    assert shard_of(recipe("mode=forward", text=QUADRATIC), 2) == "columns"


def test_a_refusal_says_where_the_word_stands(recipe):
    with pytest.raises(RecipeError) as refused:
        shard_of(recipe("mode=reverse", text=GOOD + "shard: columns\n"), 2)
    (issue,) = refused.value.issues
    assert issue.where.endswith("r.yaml:9:8")
