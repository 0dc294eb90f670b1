"""Every limit bites, and what lies just inside of it is read."""

import itertools
from pathlib import Path

import pytest

from hyperopt_cli.errors import RecipeError
from hyperopt_cli.recipe import load
from hyperopt_cli.recipe.document import Document, DocumentError, parse
from hyperopt_cli.recipe.limits import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_ISSUES,
    MAX_KEY,
    MAX_NODES,
    MAX_POINTS,
    excess,
)
from hyperopt_cli.recipe.overrides import override
from tests.recipe.texts import GOOD, written

INSIDE_AND_BEYOND = [  # inside, beyond, what is said
    ("x" * MAX_BYTES, "x" * (MAX_BYTES + 1), "longer than 1000000 bytes"),
    ("é" * (MAX_BYTES // 2), "é" * (MAX_BYTES // 2 + 1), "longer than 1000000 bytes"),
    ("[" * 39 + "1" + "]" * 39, "[" * 40 + "1" + "]" * 40, "f:1:41: not valid YAML: nested deeper than 40 levels"),
    ("{a: " * 39 + "1" + "}" * 39, "{a: " * 40 + "1" + "}" * 40, "nested deeper than 40 levels"),
    (
        "a: &x " + "[" * 18 + "]" * 18 + "\nb: " + "[" * 21 + "*x" + "]" * 21,
        "a: &x " + "[" * 18 + "]" * 18 + "\nb: " + "[" * 22 + "*x" + "]" * 22,
        "aliases expand beyond 40 levels",
    ),
    pytest.param(
        "[" + "1," * (MAX_NODES - 1) + "]",
        "[" + "1," * MAX_NODES + "]",
        "more than 100000 keys and values",
        marks=pytest.mark.slow,
    ),
    (  # the list, one of 1000 and its items, 98 copies of them, and what is left
        "- &a [" + "1," * 999 + "]\n" + "- *a\n" * 98 + "- 1\n" * 999,
        "- &a [" + "1," * 999 + "]\n" + "- *a\n" * 98 + "- 1\n" * 1000,
        "aliases expand beyond 100000 keys and values",
    ),
    (
        "- &a " + "x" * 1000 + "\n" + "- *a\n" * 999,
        "- &a " + "x" * 1000 + "\n" + "- *a\n" * 1000,
        "values of 1000000 characters in all",
    ),
    ("x" * MAX_KEY + ": 1", "x" * (MAX_KEY + 1) + ": 1", "has 256 characters; at most 255"),
    ("? " + "x" * MAX_KEY + "\n: 1", "? " + "x" * 500_000 + "\n: 1", "has 500000 characters; at most 255"),
    ("0" * 100, "0" * 101, "a number of 101 characters; at most 100"),
    ("0." + "0" * 98, "0." + "0" * 99, "a number of 101 characters; at most 100"),
    (str(MAX_INTEGER), str(MAX_INTEGER + 1), "an integer lies within +-(2^63 - 1)"),
    (str(-MAX_INTEGER), str(-MAX_INTEGER - 1), "an integer lies within +-(2^63 - 1)"),
    ("0x7fffffffffffffff", "0x8000000000000000", "an integer lies within +-(2^63 - 1)"),
    ("0o777777777777777777777", "0o1000000000000000000000", "an integer lies within +-(2^63 - 1)"),
    ("1.7976931348623157e308", "1.8e308", "a number lies within"),
    ("-.inf", "-1e999", "a number lies within"),
]


@pytest.mark.parametrize(("inside", "beyond", "message"), INSIDE_AND_BEYOND, ids=itertools.count())
def test_a_limit_bites_and_what_lies_inside_is_read(inside: str, beyond: str, message: str) -> None:
    assert parse(inside, "f").findings == []
    assert message in problem(beyond)


def problem(text: str) -> str:
    try:
        return parse(text, "f").findings[0].message
    except DocumentError as error:
        return str(error)


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        (".".join("a" * 39), "1", True),
        (".".join("a" * 40), "1", False),
        (".".join("a" * 37), "[[1]]", True),
        (".".join("a" * 37), "[[[1]]]", False),
        ("a" * 255, "1", True),
        ("a" * 256, "1", False),
        ("a", "'" + "x" * 999_998 + "'", True),
        ("a", "'" + "x" * 999_999 + "'", False),
    ],
)
def test_overrides_have_the_limits_of_files(key: str, value: str, fits: bool) -> None:
    document = Document({}, {}, [])
    assert (override(document, f"{key}={value}") == []) == fits
    assert bool(document.data) == fits


NOT_TEXT = [
    (b"steps: 1\nseed: \0", "2:7: not valid YAML: the character #x0000"),
    (b"\xff\xfes\0", "1:1: not UTF-8"),
    ("steps: 1".encode("utf-16"), "1:1: not UTF-8"),
    (b"steps: 1\n\xed\xa0\x80", "2:1: not UTF-8"),
    (b"a: \x1b[2J", "1:4: not valid YAML: the character #x001b"),
    (b"#" * (MAX_BYTES + 1), "1:1: longer than 1000000 bytes"),
    (b"#" * MAX_BYTES + b"\xff" * 10_000_000, "1:1: longer than 1000000 bytes"),
]


@pytest.mark.parametrize(("content", "message"), NOT_TEXT)
def test_what_is_no_text_is_refused_at_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:{message}")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load(path) == load(written(tmp_path, GOOD))


@pytest.mark.slow
def test_a_recipe_that_grows_beyond_what_can_be_read_back_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("{call: mlp, hidden: [8]}", "{call: torchvision.models.resnet18}")
    overrides = [f"model.x{i}={'y' * 490_000}" for i in range(3)]
    path = written(tmp_path, text)
    assert load(path, overrides[:2]).to_yaml()
    with pytest.raises(RecipeError, match=r"grows to 147.... bytes with everything written out; at most 1000000"):
        load(path, overrides)


def test_values_and_levels_are_counted_as_they_are_read() -> None:
    flat = {"a": [1] * (MAX_NODES - 3)}
    assert excess(flat, "") == ""
    assert "grows to 100001 values on 3 levels" in excess({"a": [1] * (MAX_NODES - 2)}, "")
    deep: object = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert excess(deep, "") == ""
    assert "on 41 levels" in excess([deep], "")


def test_many_mistakes_are_told_in_part(tmp_path: Path) -> None:
    text = GOOD + "".join(f"k{i}: 1\n" for i in range(3000))
    with pytest.raises(RecipeError) as caught:
        load(written(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert len(lines) <= MAX_ISSUES + 2
    assert sum("unknown key" in line for line in lines) >= MAX_ISSUES - 1
    assert any("2900 more mistakes" in line for line in lines)


def test_exactly_as_many_mistakes_as_are_told_are_all_told(tmp_path: Path) -> None:
    text = GOOD + "".join(f"k{i}: 1\n" for i in range(MAX_ISSUES))
    with pytest.raises(RecipeError) as caught:
        load(written(tmp_path, text))
    assert len(str(caught.value).splitlines()) == MAX_ISSUES


@pytest.mark.parametrize("kind", ["windows", "knots"])
def test_a_schedule_holds_so_many_numbers_and_no_more(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, GOOD)
    assert load(path, ["steps=9000000", f"hyperparameters.lr.schedule.{kind}={MAX_POINTS}"])
    with pytest.raises(RecipeError, match="at most 1e\\+06"):
        load(path, ["steps=9000000", f"hyperparameters.lr.schedule.{kind}={MAX_POINTS + 1}"])


def test_a_schedule_per_step_has_so_many_steps_and_no_more(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert load(path, [f"steps={MAX_POINTS}", "hyperparameters.lr.schedule=per_step"])
    with pytest.raises(RecipeError, match="holds 1000001 numbers, one a step; at most 1000000: take windows or knots"):
        load(path, [f"steps={MAX_POINTS + 1}", "hyperparameters.lr.schedule=per_step"])


def test_what_a_terminal_would_obey_is_shown_instead(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(written(tmp_path, GOOD + '"\\e[2J\\n\\u202e": 1\n'))
    assert str(caught.value).count("\\x1b[2J\\n\\u202e: unknown key") == 1
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x.yaml", "a" * 5000, "a\0b", "", "\udcff", "x/" * 3000])
def test_an_odd_name_of_a_recipe_is_a_recipe_error(name: str) -> None:
    with pytest.raises(RecipeError, match=r"no such file|no regular file"):
        load(name)
