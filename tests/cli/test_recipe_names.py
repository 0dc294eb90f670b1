"""What `cat`, `cp` and `validate` take as a recipe's name: a file, or a recipe that ships."""

import os

import pytest

from hyperopt_cli.recipe.limits import MAX_BYTES
from tests.recipe.texts import GOOD

ODD = ["", "..", "/", "a" * 5000, "~nobody-of-this-name/a", "digits_lr/../digits_lr", "../recipes/digits_lr", "\udcff"]


@pytest.mark.parametrize("command", ["cat", "cp", "validate"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_refused_and_writes_nothing(hyperopt, tmp_path, command, name):
    code, out, err = hyperopt(command, "--", name)
    assert (code, out) == (2, "")
    assert "no such file" in err or "no regular file" in err
    assert "defect" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["cat", "cp", "validate"])
def test_what_is_no_text_of_a_recipe_s_size_is_refused_at_its_place(hyperopt, tmp_path, command):
    (tmp_path / "long.yaml").write_text("#" * (MAX_BYTES + 1))
    (tmp_path / "latin.yaml").write_bytes(b"steps: 1\n# caf\xe9\n")
    assert hyperopt(command, "long.yaml")[::2] == (
        2,
        "hyperopt: long.yaml:1:1: longer than 1000000 bytes; a recipe is a page\n",
    )
    assert hyperopt(command, "latin.yaml")[::2] == (
        2,
        "hyperopt: latin.yaml:2:6: not UTF-8; save the recipe as UTF-8\n",
    )


def test_a_pipe_is_not_waited_for(hyperopt, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    code, _, err = hyperopt("cat", "pipe.yaml")
    assert code == 2
    assert "is no regular file" in err


def test_a_copy_goes_where_one_stands_and_over_nothing(hyperopt, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.yaml").write_text(GOOD)
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert hyperopt("cp", "elsewhere/mine.yaml").out == "mine.yaml\n"
    for target in ("target", "link", "dangling", "mine.yaml"):
        code, _, err = hyperopt("cp", "elsewhere/mine.yaml", target)
        assert (code, "exists" in err) == (2, True)
    assert (tmp_path / "target").read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_is_not_utf8_is_told(hyperopt, tmp_path):
    (tmp_path / "\udcff.yaml").write_text(GOOD)
    code, out, err = hyperopt("validate", "\udcff.yaml")
    assert (code, err) == (0, "")
    assert out.startswith("'\\udcff.yaml': valid")
