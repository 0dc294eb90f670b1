"""The grid of --array."""

import itertools

import pytest

from hyperopt_cli.cluster.array import MAX_ELEMENTS, Element, elements
from hyperopt_cli.errors import UsageError


def names(*texts):
    return [element.name for element in elements(*texts)]


def test_no_array_is_one_run_without_overrides():
    assert elements() == (Element(0, "run"),)


def test_the_grid_has_every_combination_once_and_numbers_them_from_0():
    grid = elements("seed=0..9,mode=forward,reverse")
    expected = [(f"seed={s}", f"mode={m}") for s, m in itertools.product(range(10), ("forward", "reverse"))]
    assert [element.overrides for element in grid] == expected
    assert [element.task for element in grid] == list(range(20))
    assert grid[7].name == "seed=3,mode=reverse"


def test_several_arrays_multiply_and_the_last_varies_fastest():
    grid = elements("seed=0..1", "mode=forward,reverse", "steps=5,7,9")
    assert len(grid) == 12
    assert [element.name for element in grid[:4]] == [
        "seed=0,mode=forward,steps=5",
        "seed=0,mode=forward,steps=7",
        "seed=0,mode=forward,steps=9",
        "seed=0,mode=reverse,steps=5",
    ]
    assert grid[-1] == Element(11, "seed=1,mode=reverse,steps=9", ("seed=1", "mode=reverse", "steps=9"))
    assert grid == elements("seed=0..1,mode=forward,reverse", "steps=5,7,9")
    assert grid == elements("seed=0..1,mode=forward,reverse,steps=5,7,9")


def test_ranges_have_both_ends_and_may_be_negative_or_single():
    assert names("seed=-1..1") == ["seed=-1", "seed=0", "seed=1"]
    assert names("seed=4..4") == ["seed=4"]
    assert names("seed=0..1,7") == ["seed=0", "seed=1", "seed=7"]


def test_commas_within_brackets_braces_and_quotes_belong_to_the_value():
    grid = elements("mode={name: reverse, slots: 5},forward,hyperparameters.lr.initial=[0.1,0.2],'a,b'")
    assert [element.overrides for element in grid] == [
        ("mode={name: reverse, slots: 5}", "hyperparameters.lr.initial=[0.1,0.2]"),
        ("mode={name: reverse, slots: 5}", "hyperparameters.lr.initial='a,b'"),
        ("mode=forward", "hyperparameters.lr.initial=[0.1,0.2]"),
        ("mode=forward", "hyperparameters.lr.initial='a,b'"),
    ]


@pytest.mark.parametrize("value", ["$(touch x)", "`id`", "a b", "x;y", "../../etc", "a\nb", "a/b", "'$(id)'"])
def test_names_stay_names_of_one_folder(value):
    (element,) = elements(f"dataset.root={value}")
    assert "/" not in element.name
    assert not set(element.name) & set("$`;\n\"' ()")
    assert not element.name.startswith(".")
    assert element.overrides == (f"dataset.root={value}",)


def test_names_that_would_be_alike_or_too_long_are_numbered():
    assert names("loss={a: 1},[a: 1]") == ["0-loss=-a-1-", "1-loss=-a-1-"]
    assert names("loss=a,A") == ["0-loss=a", "1-loss=A"]
    (long,) = names(f"loss={'x' * 300}")
    assert long.startswith("0-loss=xxx")
    assert len(long) < 100


def test_an_array_is_bounded_before_it_is_laid_out():
    assert len(elements(f"seed=1..{MAX_ELEMENTS}")) == MAX_ELEMENTS
    with pytest.raises(UsageError, match="more than 10000 values"):
        elements("seed=0..999999999999")
    with pytest.raises(UsageError, match="got 1000000 elements; at most 10000"):
        elements("seed=1..1000", "steps=1..1000")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give KEY=A..B"),
        ("0..9", "give KEY=A..B"),
        ("seed", "give KEY=A..B"),
        ("=3", "give KEY=A..B"),
        ("seed=", "an empty value of seed"),
        ("seed=1,,2", "an empty value of seed"),
        ("seed=9..0", "did you mean seed=0..9"),
        ("seed=0..", "a range is two integers"),
        ("seed=0.5..1.5", "a range is two integers"),
        ("seed=0..5..2", "a range is two integers"),
        ("seed=1,2,1", "got seed=1 twice"),
        ("seed=0..3,2", "got seed=2 twice"),
        ("seed=1,mode=forward,seed=2", "got seed twice"),
        ("mode={name: reverse", "not closed"),
        ("mode='reverse", "not closed"),
    ],
)
def test_what_is_no_grid_is_refused_with_what_would_be(text, message):
    with pytest.raises(UsageError) as caught:
        elements(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--array")


def test_a_key_of_two_arrays_is_refused():
    with pytest.raises(UsageError, match=r"--array: got seed twice; give all of its values at once: seed=VALUE,VALUE"):
        elements("seed=0..3", "mode=forward,reverse", "seed=7")
