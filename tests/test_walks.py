"""What docs/code.md says of the way through the code is true."""

import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "code.md").read_text(encoding="utf-8")
WALKS = {
    title: re.findall(r"^\d+\. `([\w.]+):([\w.]+)`", steps, re.MULTILINE)
    for title, steps in re.findall(r"^(A [^\n]*):\n\n((?:\d+\. [^\n]*\n)+)", TEXT, re.MULTILINE)
}


def source(module: str, name: str) -> str:
    where: Any = import_module(f"hyperopt_cli.{module}")
    for part in name.split("."):
        where = getattr(where, part)
    return inspect.getsource(where)


def speaks_of(text: str, name: str) -> bool:
    *owner, own = name.split(".")
    if own.startswith("__"):  # which is called by no name
        return re.search(rf"\b{owner[0]}\b", text) is not None
    return re.search(rf"(?:\.|def ){own}\b" if owner else rf"\b{own}\b", text) is not None


def test_there_are_three_walks_and_a_checkpoint_takes_four_hops_at_most() -> None:
    assert [len(steps) for steps in WALKS.values()] == [14, 5, 8]


@pytest.mark.parametrize("walk", WALKS)
def test_of_two_neighbours_on_a_walk_one_speaks_of_the_other(walk: str) -> None:
    steps = WALKS[walk]
    for here, there in pairwise(steps):
        assert speaks_of(source(*here), there[1]) or speaks_of(source(*there), here[1]), f"{here} and {there}"
