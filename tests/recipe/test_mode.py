"""The forms in which a recipe gives the arguments of a mode."""

from pathlib import Path
from typing import Any

import pytest

from hyperopt_cli.modes import MODES
from hyperopt_cli.recipe import load
from hyperopt_cli.recipe.json_schema import allowed_keys, expected
from tests.recipe.texts import without, written


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ("reverse", {}),
        ("{name: reverse, slots: 7}", {"slots": 7}),
        ("{name: reverse, slots: auto}", {"slots": "auto"}),
        ("{name: reverse, slots: all, window: 3}", {"slots": "all", "window": 3}),
        ("{name: reverse, slots: null}", {}),
        ("{name: reverse, slots: {host: 2, disk: 3}}", {"slots": {"device": 0, "host": 2, "disk": 3}}),
        ("{name: reverse, path: linear, window: 9}", {"path": "linear", "window": 9}),
    ],
)
def test_what_reverse_is_made_with(tmp_path: Path, given: str, arguments: dict[str, Any]) -> None:
    recipe = load(written(tmp_path, without("mode") + f"mode: {given}\n"))
    assert recipe.mode.arguments == {**arguments, "compile": "auto"}
    MODES[recipe.mode.name](**recipe.mode.arguments)
    assert load(written(tmp_path, recipe.to_yaml())) == recipe


def test_slots_can_be_given_place_by_place_on_the_command_line(tmp_path: Path) -> None:
    overrides = ("mode=reverse", "mode.slots.host=3", "mode.slots.disk=5")
    recipe = load(written(tmp_path, without("mode")), overrides)
    assert recipe.mode.arguments["slots"] == {"device": 0, "host": 3, "disk": 5}


def test_the_schema_says_what_slots_and_path_may_be() -> None:
    assert allowed_keys(("mode", "slots")) == ["device", "host", "disk"]
    assert expected(("mode", "slots")) == "a mapping or an integer of at least 1 or one of auto, all"
    assert expected(("mode", "path")) == "linear"
