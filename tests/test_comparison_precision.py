"""`compare` at a lower precision: each mode against itself in float32, in the table and in comparison.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperopt_cli import Forward, Reverse, hypergradient
from hyperopt_cli.comparison import TOLERANCES, check, compare, relative_difference
from hyperopt_cli.run_directory.compared import Comparison
from hyperopt_cli.run_directory.comparison_rows import AGAINST, COST_HEADER, cost_header, cost_rows
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
    header, rows = cost_header(lowered), cost_rows(lowered)
    assert set(header) == {*COST_HEADER, AGAINST}
    for row, each in zip(rows, lowered.modes, strict=True):
        assert len(row) == len(header)
        assert each.against_float32 is not None
        worst = max(each.against_float32.hypergradient.values())
        assert float(row[header.index(AGAINST)]) == pytest.approx(worst, rel=0.1)


def test_it_survives_json(lowered: Comparison) -> None:
    content = json.loads(json.dumps(lowered.to_json()))
    assert Comparison.from_json(content) == lowered


def test_float32_itself_has_no_such_column() -> None:
    comparison = compare(least_squares(precision=None), HYPER, MODES)
    assert cost_header(comparison) == COST_HEADER
    assert all(each.against_float32 is None for each in comparison.modes)
    assert torch.float32 in TOLERANCES


def test_the_command_tells_it(hyperopt: Any, tmp_path: Path) -> None:
    changes = ["dataset.batch_size=64", "model.hidden=[5]", "precision=bf16", "device=cpu"]
    chosen = "reverse,forward:engine=reverse_over_reverse"
    code, out, err = hyperopt("compare", "digits_lr", *changes, "--steps", 6, "--modes", chosen, "--out", "made")
    assert code == 0, err
    assert AGAINST in out
    assert "in bf16" in out
    content = json.loads((tmp_path / "made" / "comparison.json").read_text(encoding="utf-8"))
    assert all(each["against_float32"]["hypergradient"] for each in content["modes"])
    read = EventAccumulator(str(tmp_path / "made" / "tensorboard" / "reverse")).Reload()
    told = read.Scalars("compare/against_float32")[0].value
    assert told == pytest.approx(max(content["modes"][0]["against_float32"]["hypergradient"].values()))
