"""The recipe's precision: of the parameters, and of the products."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli import hypergradient
from hyperopt_cli.errors import RecipeError
from hyperopt_cli.modes.account import Account
from tests.dynamics.test_precision import PRODUCTS, seeing
from tests.instantiate.recipes import built


@pytest.mark.parametrize(
    ("precision", "dtype", "products"),
    [
        ("float64", torch.float64, {torch.float64}),
        ("float32", torch.float32, {torch.float32}),
        ("bf16", torch.float32, {torch.bfloat16, torch.float32}),  # the latter for the outer objective
    ],
)
def test_a_recipes_precision_is_that_of_its_run(
    tmp_path: Path, precision: str, dtype: Any, products: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = built(tmp_path, precision=precision, steps=3)
    problem, hyper = experiment.problem(0), experiment.space.natural(experiment.space.initial())
    monkeypatch.setattr(Account, "examines", False)  # which is done in float64
    with seeing() as seen:
        out = hypergradient(problem, hyper, "reverse")
    assert {w.dtype for w in out.params.values()} == {dtype}
    assert seen.of(*PRODUCTS) == products


def test_tf32_on_a_processor_is_refused_at_its_place(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="precision: got tf32; tf32 is a format of GPUs") as raised:
        built(tmp_path, precision="tf32")
    assert "recipe.yaml:" in str(raised.value)
