"""The small commands."""

import json
import subprocess
import sys

import pytest

from hyperopt_cli.recipe import load, shipped


def test_help_loads_no_torch():
    code = "import sys; sys.argv = ['hyperopt', '--help']\nfrom hyperopt_cli.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules, 'torch was loaded'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in (
        "run",
        "train",
        "validate",
        "ls",
        "cat",
        "cp",
        "schema",
        "runs",
        "show",
        "doctor",
        "compare",
        "plan",
        "bench",
    ):
        assert command in done.stdout


def test_version(hyperopt):
    assert hyperopt("--version").out.strip() == "0.1.0"


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_that_ships_is_valid(hyperopt, name):
    code, out, _ = hyperopt("validate", name)
    assert code == 0
    assert f"{name}: valid" in out


def test_ls_names_every_recipe_with_its_claim(hyperopt):
    lines = hyperopt("ls").out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split()) > 3 for line in lines)


def test_cat_and_cp_give_the_recipe(hyperopt, tmp_path):
    text = shipped()["digits_lr"].read_text()
    assert hyperopt("cat", "digits_lr").out == text
    assert hyperopt("cp", "digits_lr").code == 0
    assert (tmp_path / "digits_lr.yaml").read_text() == text
    assert hyperopt("cp", "digits_lr", "other.yaml").code == 0
    assert load(tmp_path / "other.yaml") == load("digits_lr")


def test_schema_is_json_schema(hyperopt):
    assert json.loads(hyperopt("schema").out)["properties"]["steps"]


def test_doctor_names_what_is_here(hyperopt):
    code, out, _ = hyperopt("doctor")
    assert code == 0
    assert "torch " in out
    assert "digits" in out
