"""Which files count as the user's own code, and that a change of any of them is seen."""

import importlib
import sys
from pathlib import Path

import pytest

from hyperopt_cli.recipe.sources import changed, relative_file, sources

FILES = {
    "mine/__init__.py": "from .net import f\n",
    "mine/net.py": "from mine.config import WIDTH\nimport mine_helper, math, torch\ndef f():\n    from . import late\n",
    "mine/config.py": "WIDTH = 8\n",
    "mine/late.py": "from ..mine.parts.deep import X\n",
    "mine/parts/__init__.py": "",
    "mine/parts/deep.py": "from .. import sibling\nX = 1\n",
    "mine/sibling.py": "import importlib\nplugin = importlib.import_module('mine.plugin')\n",
    "mine/plugin.py": "Y = 1\n",
    "mine/broken.py": "def (\n",
    "mine/never.py": "Z = 1\n",
    "mine_helper.py": "import mine_second\n",
    "mine_second.py": "VALUE = 3\n",
    "unrelated.py": "VALUE = 3\n",
}
COUNTED = [
    "mine/__init__.py",
    "mine/net.py",
    "mine/config.py",
    "mine/late.py",
    "mine/sibling.py",
    "mine/plugin.py",
    "mine_helper.py",
    "mine_second.py",
]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "mine_helper", "mine_second")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    importlib.import_module("mine")
    importlib.import_module("mine.sibling")
    return tmp_path


@pytest.mark.parametrize("file", COUNTED)
def test_a_change_of_own_code_is_seen(file: str, mine: Path) -> None:
    before = sources(["mine.*"])
    assert changed(before, sources(["mine.*"])) == []
    (mine / file).write_text(FILES[file] + "\nA = 1\n")
    assert changed(before, sources(["mine.*"])) == [file]


@pytest.mark.parametrize("file", ["mine/never.py", "mine/broken.py", "unrelated.py"])
def test_what_nothing_imports_does_not_count(file: str, mine: Path) -> None:
    before = sources(["mine.*"])
    (mine / file).write_text("A = 1\n")
    assert sources(["mine.*"]) == before


def test_libraries_without_leave_do_not_count(mine: Path) -> None:
    assert {name.partition(".")[0] for name in sources(["mine.*"])} == {"mine", "mine_helper", "mine_second"}
    assert not {"torch", "math", "hyperopt_cli"} & {name.partition(".")[0] for name in sources(["mine.*", "*"])}


def test_an_installed_package_with_leave_counts_as_far_as_it_is_imported() -> None:
    importlib.import_module("yaml")
    assert {"yaml", "yaml.loader"} <= set(sources(["yaml.*"]))
    assert relative_file("yaml.loader") == "yaml/loader.py"


def test_without_leave_there_is_no_own_code(mine: Path) -> None:
    assert sources([]) == {}


def test_a_module_that_becomes_a_package_has_changed_if_its_code_has(mine: Path) -> None:
    before = sources(["mine.*"])
    (mine / "mine_helper.py").unlink()
    (mine / "mine_helper").mkdir()
    (mine / "mine_helper/__init__.py").write_text("import mine_second\nB = 1\n")
    monkey = sys.modules.pop("mine_helper")
    importlib.invalidate_caches()
    try:
        assert changed(before, sources(["mine.*"])) == ["mine_helper/__init__.py"]
    finally:
        sys.modules["mine_helper"] = monkey
