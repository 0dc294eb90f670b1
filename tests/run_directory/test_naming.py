"""A run's folder stays inside of runs/."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperopt_cli.run_directory.naming import MAX_BYTES, folder_name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("digits_lr", "digits_lr"),
        ("v1.2-final", "v1.2-final"),
        ("größe", "größe"),
        ("..", "recipe"),
        (".", "recipe"),
        ("", "recipe"),
        ("../../etc/passwd", "etc-passwd"),
        ("/etc", "etc"),
        ("a\\b", "a-b"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("a\n\x1b[2J\0b", "a-2J-b"),
        ("\udcff", "recipe"),
        ("x" * MAX_BYTES, "x" * MAX_BYTES),
        ("x" * (MAX_BYTES + 1), "x" * MAX_BYTES),
        ("é" * 200, "é" * 80),
    ],
)
def test_names_become_one_component(name: str, folder: str) -> None:
    assert folder_name(name) == folder


@given(name=st.text() | st.text(st.sampled_from("./-\\ \0a"), max_size=12))
def test_any_name_gives_a_folder_inside_of_its_parent(name: str) -> None:
    parent = Path("/somewhere/runs")
    folder = folder_name(name)
    assert Path(f"{parent}/{folder}").resolve().parent == parent
    assert 0 < len(folder.encode()) <= MAX_BYTES
    assert not folder.startswith(("-", "."))
