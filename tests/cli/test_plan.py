"""`hyperopt plan`: the table, the JSON, the memory of another machine, and its errors."""

import json
import shlex

import pytest

from hyperopt_cli.byte_sizes import parsed_bytes
from hyperopt_cli.recipe import load

SMALL = ("digits_lr", "steps=12", "model.hidden=[5]", "outer.steps=3", "device=cpu")


def test_the_plan_is_a_table_a_reason_and_a_line_for_the_recipe(hyperopt, tmp_path):
    code, out, err = hyperopt("plan", *SMALL)
    assert code == 0, err
    assert "4 hypergradients of 12 steps, on cpu with" in out
    for word in ("forward", "reverse", "reverse:slots=2", "reversible", "whole run", "HVPs"):
        assert word in out
    line = out.rstrip().splitlines()[-3]
    (chosen,) = [row.split()[0] for row in out.splitlines() if " chosen " in row]
    assert chosen in out.splitlines()[-5]
    recipe = tmp_path / "mine.yaml"
    hyperopt("cp", "digits_lr", recipe)
    recipe.write_text(f"{recipe.read_text()}{line}\n")
    assert load(recipe).mode.name == chosen.partition(":")[0]
    words = shlex.split(out.rstrip().splitlines()[-1].removeprefix("run it: "))
    assert words[:3] == ["hyperopt", "run", "digits_lr"]
    assert load(words[2], words[3:]).mode == load(recipe).mode
    assert load(words[2], words[3:]).steps == 12


def test_json_is_one_object_with_every_prediction(hyperopt):
    code, out, err = hyperopt("plan", *SMALL, "--json")
    assert code == 0, err
    read = json.loads(out)
    rows = {row["name"]: row for row in read["predictions"]}
    assert read["choice"] in rows
    assert read["recipe"].startswith("mode: ")
    assert rows["reverse"]["num_gradients"] == 24
    assert rows["reverse"]["run_s"] == 4 * rows["reverse"]["wall_s"]
    assert rows["reverse"]["peak_bytes"] > 2**20
    assert all(set(row) == set(rows["reverse"]) for row in rows.values())


def test_nesterov_is_listed_with_the_reason(hyperopt):
    code, out, _ = hyperopt("plan", *SMALL, "optimizer.nesterov=true")
    assert code == 0
    assert "reversible can't run: SGD as it is set here" in out


def test_a_run_that_is_long_enough_to_be_compiled_is_told_to_be_measured_uncompiled(hyperopt):
    _, out, _ = hyperopt("plan", *SMALL, "--json")
    assert not any(row["may_compile"] for row in json.loads(out)["predictions"])
    _, out, _ = hyperopt("plan", *SMALL, "steps=200000")
    assert "\nforward and reverse measured uncompiled; so long a run may be compiled" in out


def test_it_plans_for_the_memory_it_is_given(hyperopt):
    code, out, _ = hyperopt("plan", *SMALL, "--memory", "64GiB", "--json")
    assert code == 0
    assert json.loads(out)["available_bytes"] == 64 * 2**30


def test_where_no_mode_fits_it_says_what_each_needs(hyperopt):
    code, out, err = hyperopt("plan", *SMALL, "--memory", "1MiB")
    assert code == 2
    assert out == ""
    assert "none fits into 1 MiB: forward needs" in err
    assert "Traceback" not in err


def test_a_bad_recipe_is_exit_code_2(hyperopt):
    code, _, err = hyperopt("plan", "digits_lr", "steps=none")
    assert code == 2
    assert "steps" in err


def test_a_run_may_choose_its_mode_itself(hyperopt):
    code, out, err = hyperopt("run", *SMALL, "outer.steps=1", "--mode", "auto")
    assert code == 0, err
    assert "outer 1/1" in out


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("512 MiB", 2**29),
        ("16GB", 16 * 10**9),
        ("1.5gib", 3 * 2**29),
        ("1000", 1000),
        ("2kB", 2000),
    ],
)
def test_sizes_are_read_with_their_units(text, size):
    assert parsed_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "8 GiBs", "-1GiB", "0", "1e9", "GiB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="got"):
        parsed_bytes(text)
