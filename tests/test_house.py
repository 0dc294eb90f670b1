"""What can be counted of whether the code reads well, each with a ceiling; `python3 -m tests.test_house` prints it."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hyperopt_cli

ROOT = Path(hyperopt_cli.__file__).parent
SAVED = re.compile(r"^(_?)(state_dict|load_state_dict|from_state_dict|resume|resumed|_resume_state|save|save_if_due)$")


class Function(NamedTuple):
    path: Path
    node: ast.FunctionDef
    is_public: bool  # and so is every class around it

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.node.lineno} {self.node.name}"

    @property
    def parameters(self) -> list[str]:
        arguments = self.node.args
        names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        return [name for name in names if name not in ("self", "cls")]

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def length(self) -> int:
        """Lines of the body without its docstring."""
        body = self.node.body[1:] if ast.get_docstring(self.node) else self.node.body
        return 0 if not body else (self.node.end_lineno or 0) - body[0].lineno + 1


def functions() -> Iterator[Function]:
    def within(path: Path, node: ast.AST, is_public: bool) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from within(path, child, is_public and not child.name.startswith("_"))
            elif isinstance(child, ast.FunctionDef):
                yield Function(path, child, is_public and not child.name.startswith("_"))

    for path in sorted(ROOT.rglob("*.py")):
        yield from within(path, ast.parse(path.read_text(encoding="utf-8")), is_public=True)


def named_once_elsewhere() -> list[str]:
    """Private functions that one place of their file names."""
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
    private = [each for each in functions() if re.match(r"_[a-z]", each.node.name)]
    return [each.place for each in private if len(re.findall(rf"\b{each.node.name}\b", texts[each.path])) == 2]


def fragments() -> list[str]:
    """Public names whose docstring has four words or fewer."""
    return [each.place for each in functions() if each.is_public and 0 < len(each.docstring.split()) <= 4]


def without_arguments() -> list[str]:
    """Public functions of four or more parameters that don't say what these are; those of a command have help texts."""
    return [
        each.place
        for each in functions()
        if each.is_public
        and len(each.parameters) >= 4
        and not re.search(r"^ *Args:", each.docstring, re.MULTILINE)
        and not any("typer." in ast.unparse(argument) for argument in each.node.args.args)
    ]


def long_ones() -> list[str]:
    """Functions whose body has more than 60 lines."""
    return [f"{each.place} ({each.length})" for each in functions() if each.length > 60]


def for_a_thousand_lines() -> float:
    """Functions, for 1,000 lines of the package."""
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in ROOT.rglob("*.py"))
    return 1000 * sum(1 for _ in functions()) / lines


def saving() -> list[str]:
    """Functions that only save or restore."""
    return [each.place for each in functions() if SAVED.match(each.node.name)]


CEILINGS: dict[Callable[[], list[str]], int] = {
    named_once_elsewhere: 375,
    fragments: 0,
    without_arguments: 0,
    long_ones: 0,
    saving: 43,
}


FUNCTIONS_FOR_A_THOUSAND_LINES = 60


def test_there_are_not_more_functions_for_as_many_lines() -> None:
    assert for_a_thousand_lines() <= FUNCTIONS_FOR_A_THOUSAND_LINES + 0.5


@pytest.mark.parametrize("count", CEILINGS, ids=lambda count: count.__name__)
def test_no_more_than_there_were(count: Callable[[], list[str]]) -> None:
    assert len(count()) <= CEILINGS[count]


if __name__ == "__main__":
    for count in CEILINGS:
        print(f"{len(count()):4d}  {count.__doc__}", *count(), sep="\n      ")
    print(f"{for_a_thousand_lines():4.0f}  {for_a_thousand_lines.__doc__}")
