"""Commands in messages are whole: what was typed, changed, and quoted for a shell."""

import shlex
from typing import Any

import pytest

from hyperopt_cli.cli.again import again, allowing, command
from hyperopt_cli.errors import FixedPointRangeError, HyperoptError, ReversalError


@pytest.mark.parametrize(
    ("typed", "add", "drop", "recipe", "expected"),
    [
        ("run a.yaml", ("--resume-anyway",), (), "", "run a.yaml --resume-anyway"),
        ("run a.yaml --resume-anyway", ("--resume-anyway",), (), "", "run a.yaml --resume-anyway"),
        ("run a.yaml --out o x=1 --resume=d", (), ("--out", "--resume"), "", "run a.yaml x=1"),
        ("run a.yaml 'x={a: 1}'", ("--allow-import", "own.*"), (), "", "run a.yaml 'x={a: 1}' --allow-import 'own.*'"),
        ("--debug run --resume d x=1", (), ("--resume",), "d/r.yaml", "--debug run d/r.yaml x=1"),
        ("run a.yaml --out 'my runs'", ("--resume", "auto"), (), "", "run a.yaml --out 'my runs' --resume auto"),
        ("run a.yaml --out", (), ("--out",), "", "run a.yaml"),
    ],
)
def test_the_command_is_that_which_was_typed_changed(
    typed: str, add: Any, drop: Any, recipe: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/hyperopt", *shlex.split(typed)])
    assert again(*add, drop=drop, recipe=recipe) == f"hyperopt {expected}"


def test_a_module_is_called_as_one_where_there_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/hyperopt_cli/__main__.py", "ls"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("run", "--resume", "a b", *allowing(["own.*"])) == (
        "python -m hyperopt_cli run --resume 'a b' --allow-import 'own.*'"
    )
    assert allowing(None) == []


@pytest.mark.parametrize("error", [FixedPointRangeError(3, "w", 2.0**40, 30, {}), ReversalError(3, 1)])
def test_a_remedy_that_sets_the_mode_leaves_out_the_option_that_would_be_refused_beside_it(
    error: HyperoptError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["hyperopt", "run", "a.yaml", "--mode", "reversible", "--out", "o"])
    (remedy,) = error.remedies
    (mode,) = remedy.add
    assert again(*remedy.add, drop=remedy.drop) == command("run", "a.yaml", mode)
