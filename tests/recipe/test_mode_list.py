import pytest

from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe import load
from hyperopt_cli.recipe.mode_list import mode_overrides


def test_a_list_is_a_set_of_overrides_for_each_mode() -> None:
    assert mode_overrides(" forward, reverse:slots.host=3:window=20 ") == {
        "forward": ["mode=forward"],
        "reverse:slots.host=3:window=20": ["mode=reverse", "mode.slots.host=3", "mode.window=20"],
    }


def test_the_overrides_replace_the_recipe_s_own_mode() -> None:
    recipe_s = ["mode={name: forward, columns_at_once: 4}"]
    overrides = mode_overrides("reverse:slots.host=3:slots.disk=5")["reverse:slots.host=3:slots.disk=5"]
    mode = load("digits_lr", [*recipe_s, *overrides]).mode
    assert mode.name == "reverse"
    assert mode.arguments == {"slots": {"device": 0, "host": 3, "disk": 5}, "compile": "auto"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "NAME"),
        ("forward,,reverse", "NAME"),
        (":slots=5", "NAME"),
        ("forward,reverse,forward", "forward twice"),
        ("auto,forward", "stands for one of the other modes"),
    ],
)
def test_a_list_that_names_no_mode_or_one_twice_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mode_overrides(text)
