"""What docs/code.md says of the way through the code is true."""

import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
WALKS = {
    title: re.findall(r"^\d+\. `([\w.]+):([\w.]+)`", steps, re.MULTILINE)
    for title, steps in re.findall(r"^([A-Z][^\n]*):\n\n((?:\d+\. `\w[\w.]*:[^\n]*\n)+)", TEXT, re.MULTILINE)
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


def test_the_walks_are_read_and_a_checkpoint_takes_four_hops_at_most() -> None:
    assert {title: len(steps) for title, steps in WALKS.items()} == {
        "A hyperparameter, from the recipe to the update rule": 15,
        "A derivative by reverse mode, from the update rule to the record": 13,
        "A derivative by forward mode": 5,
        "Whether a checkpoint is due, asked after each step": 4,
        "A checkpoint, from the step to the file": 5,
        "A run that goes on from it": 11,
        "A compiled step": 8,
    }


EXAMPLES = {"own.py", "package/part.py", "package/__init__.py", "torch.py"}  # of a user's own


def test_files_that_docstrings_and_documents_name_are_there() -> None:
    """In a docstring `forward.py` is one of the file's own folder, `modes/forward.py` one of the package's."""
    package = ROOT / "hyperopt_cli"
    for path in [*package.rglob("*.py"), *(ROOT / "docs").glob("*.md")]:
        for name in set(re.findall(r"`([\w/]+\.py)`", path.read_text(encoding="utf-8"))) - EXAMPLES:
            found = list(package.rglob(name)) if path.suffix == ".md" else []
            assert found or any((folder / name).exists() for folder in (path.parent, package, ROOT)), f"{path}: {name}"


@pytest.mark.parametrize("walk", WALKS)
def test_of_two_neighbours_on_a_walk_one_speaks_of_the_other(walk: str) -> None:
    steps = WALKS[walk]
    for here, there in pairwise(steps):
        assert speaks_of(source(*here), there[1]) or speaks_of(source(*there), here[1]), f"{here} and {there}"
