"""YAML 1.2 scalars, positions and bounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperopt_cli.recipe.document import DocumentError, dump, parse
from hyperopt_cli.recipe.limits import MAX_BYTES, MAX_INTEGER


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5.0e-4", 5e-4),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("0o17", 15),
        ("0x1F", 31),
        ("+12", 12),
        ("010", 10),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2026-01-01", "2026-01-01"),
        ("inf", "inf"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ('!!int "7"', 7),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    data = parse(text, "f").data
    assert (type(data), data) == (type(value), value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse(".nan", "f").data)


def test_marks_hold_the_position_of_keys_and_values() -> None:
    marks = parse("a:\n  b: [1,\n      2]\n", "f").marks
    assert [tuple(map(str, marks[path])) for path in [("a", "b"), ("a", "b", 1)]] == [
        ("f:2:3", "f:2:6"),
        ("f:3:7", "f:3:7"),
    ]


def test_aliases_are_copied() -> None:
    data = parse("a: &x [1]\nb: *x\n", "f").data
    assert data == {"a": [1], "b": [1]}
    assert data["a"] is not data["b"]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: 1\na: 2\nb: 3\nb: 4\n", "given twice, first in line 1, column 1"),
        ("a: 1\na: 2\nb: 3\nb: 4\n", "given twice, first in line 3, column 1"),
        ("1: a", "the key '1' is not a string"),
        ("[a]: b", "not a string"),
        ("a: !!python/object:os.system x", "not allowed"),
        ("!!set {a}", "not allowed"),
        ("!!int abc", "is no int"),
        ('"\\uD800"', "surrogate"),
        ("9" * 5000, "5000 characters"),
        ('{"\\uD800": 1}', "half of a surrogate pair"),
        ("{<<: {a: 1}}", "would merge mappings"),
    ],
)
def test_faults_that_leave_the_rest_readable_are_findings(text: str, fragment: str) -> None:
    assert any(fragment in finding.message for finding in parse(text, "f").findings)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: [", "f:1:5: not valid YAML"),
        ("a: 1\n b: 2\n", "f:2:3: not valid YAML"),
        ("a: \x07", "f:1:4: not valid YAML: the character #x0007"),
        ("a: *x", "f:1:4: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "f:2:1: not valid YAML: expected a single document"),
        ('"\\UFFFFFFFF"', "not valid YAML"),
        ("!%a0", "f:1:2: not valid YAML: while scanning a tag, found escapes that are not UTF-8"),
        ("[" * 5000, "nested deeper than 40 levels"),
        ("&a [*a]", "f:1:1: aliases expand beyond 40 levels"),
        ("&a [*a, *a]", "f:1:1: aliases expand beyond 40 levels"),
        ("&a {b: {c: *a}}", "f:1:1: aliases expand beyond 40 levels"),
        ("#" * (MAX_BYTES + 1), "longer than"),
    ],
)
def test_unreadable_texts_say_where(text: str, fragment: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse(text, "f")
    assert fragment in str(caught.value)


def test_nested_aliases_cannot_explode() -> None:
    rows = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(DocumentError, match="aliases expand"):
        parse("\n".join(rows), "f")


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["no", "0o17", "1e-3", "", "~"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(data=_PLAIN)
def test_dumped_data_reads_back_equal(data: object) -> None:
    assert parse(dump(data), "f").data == data
