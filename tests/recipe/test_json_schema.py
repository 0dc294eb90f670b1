"""The schema that editors take."""

from typing import Any

import pytest

from hyperopt_cli.recipe import json_schema
from hyperopt_cli.recipe.document import parse
from hyperopt_cli.recipe.json_schema import allowed_keys, expected
from hyperopt_cli.registry import MODES
from tests.recipe.texts import GOOD

EXAMPLE = """
model:            {call: hyperopt_cli.models.wide_resnet, depth: 16, widen_factor: 1}
dataset:          {call: hyperopt_cli.data.cifar10, root: ~/.cache/hyperopt, validation_fraction: 0.05, batch_size: 256}
optimizer:        {name: sgd, nesterov: false}
steps: 1850
hyperparameters:
  lr:             {initial: 0.1, transform: log, schedule: {windows: 7}}
  momentum:       {initial: 0.9, transform: logit}
  weight_decay:   {initial: 5.0e-4, transform: log}
outer:            {optimizer: adam, lr: 0.05, steps: 10}
mode: forward
seed: 0
"""


@pytest.mark.parametrize("text", [EXAMPLE, GOOD])
def test_good_recipes_fit_the_schema(text: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(parse(text, "recipe").data, json_schema())


def test_a_bad_recipe_does_not_fit_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parse(EXAMPLE.replace("mode: forward", "mode: sideways"), "recipe").data, json_schema())


@pytest.mark.parametrize(
    ("key", "short"),
    [
        ("Hyperparameter", {"type": "number"}),
        ("Parameter", {"type": "number"}),
        ("Mode", {"enum": list(MODES)}),
    ],
)
def test_shorthands_are_in_the_schema(key: str, short: dict[str, Any]) -> None:
    definition = json_schema()["$defs"][key]
    assert short in definition["anyOf"]
    assert any("properties" in branch for branch in definition["anyOf"])


def test_unknown_keys_are_refused_by_the_schema() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"model", "optimizer", "steps", "hyperparameters"}


def test_what_is_allowed_is_told_through_shorthands() -> None:
    assert allowed_keys(("hyperparameters", "lr", "schedule", "one_cycle")) == ["warmup", "initial", "final"]
    assert expected(("groups", 0, "parameters", 1)) == "a string"
