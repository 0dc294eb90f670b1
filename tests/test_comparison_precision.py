"""`compare` at a lower precision: each mode against itself in float32, in the table and in JSON."""

import json
from typing import Any

import pytest
import torch

from hyperopt_cli import Forward, Reverse, hypergradient
from hyperopt_cli.cli.comparison_table import AGAINST, cost_rows
from hyperopt_cli.comparison import TOLERANCES, Comparison, check, compare, relative_difference
from tests.dynamics.test_precision import HYPER, least_squares

MODES: dict[str, Any] = {"reverse": Reverse(), "forward": Forward(engine="reverse_over_reverse")}


@pytest.fixture(scope="module")
def lowered() -> Comparison:
    return compare(least_squares(), HYPER, MODES)


def test_the_error_is_that_of_the_same_mode_in_float32(lowered: Comparison) -> None:
    for each in lowered.modes:
        one, other = (
            hypergradient(least_squares(precision=precision), HYPER, MODES[each.mode]) for precision in ("bf16", None)
        )
        assert each.against_float32 is not None
        want = {key: relative_difference(one.grad[key], other.grad[key]) for key in HYPER}
        assert each.against_float32.hypergradient == pytest.approx(want, rel=1e-6)
        assert each.against_float32.validation_loss == pytest.approx(relative_difference(one.value, other.value))
        assert max(want.values()) > 1e-5


def test_modes_in_bf16_are_judged_by_its_own_tolerance(lowered: Comparison) -> None:
    check(lowered)
    assert lowered.precision == "bf16"
    assert {each.tolerance for each in lowered.modes} == {TOLERANCES["bf16"]}


def test_the_table_has_a_column_for_it(lowered: Comparison) -> None:
    header, *rows = cost_rows(lowered)
    for row, each in zip(rows, lowered.modes, strict=True):
        assert len(row) == len(header)
        assert each.against_float32 is not None
        worst = max(each.against_float32.hypergradient.values())
        assert float(row[header.index(AGAINST)]) == pytest.approx(worst, rel=0.1)


def test_float32_itself_has_no_such_column() -> None:
    comparison = compare(least_squares(precision=None), HYPER, MODES)
    assert AGAINST not in cost_rows(comparison)[0]
    assert all(each.against_float32 is None for each in comparison.modes)
    assert torch.float32 in TOLERANCES


def test_the_command_tells_it(hyperopt: Any) -> None:
    changes = ["dataset.batch_size=64", "model.hidden=[5]", "precision=bf16", "device=cpu"]
    chosen = "reverse,forward:engine=reverse_over_reverse"
    arguments = ["compare", "digits_lr", *changes, "--steps", 6, "--modes", chosen]
    code, out, err = hyperopt(*arguments)
    assert code == 0, err
    assert AGAINST in out
    assert "in bf16" in out
    content = json.loads(hyperopt(*arguments, "--json").out)["comparison"]
    assert all(each["against_float32"]["hypergradient"] for each in content["modes"])
