import json
from dataclasses import replace

import pytest

from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.result import Point, Result
from tests.run_directory.example import result, step


def test_a_result_survives_json() -> None:
    assert Result.from_json(json.loads(json.dumps(result().to_json(), allow_nan=False))) == result()


def test_a_result_without_test_split_survives_json() -> None:
    without = replace(result(), test=None)
    assert Result.from_json(without.to_json()) == without


def test_a_diverged_result_is_strict_json_and_comes_back() -> None:
    diverged = replace(result(), wall_s=float("inf"))
    assert Result.from_json(json.loads(json.dumps(diverged.to_json(), allow_nan=False))) == diverged


def test_the_keys_are_those_of_the_contract() -> None:
    content = result().to_json()
    assert list(content) == ["status", "mode", "initial", "best", "test", "wall_s"]
    assert list(content["best"]) == ["outer_step", "validation_loss", "hyperparameters"]
    assert content["test"]["best"] == {"loss": 0.3, "accuracy": 0.93}


def test_a_point_keeps_values_and_shapes() -> None:
    values = Point.of(step(2)).hyperparameters
    assert values["momentum"] == 0.902
    assert values["weight_decay"] == [[5e-4, 4e-4], [3e-4, 1e-5 * 3]]


def test_a_foreign_result_is_refused() -> None:
    with pytest.raises(UsageError, match="another version"):
        Result.from_json({"status": "done"})
