"""What the README shows works."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from hyperopt_cli.recipe import shipped

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_own_model_and_data_set_run(hyperopt, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
    code, recipe = (block for block in [*blocks("python"), *blocks("yaml")] if "mine" in block)
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(recipe)
    done = hyperopt("run", "mine.yaml", "--allow-import", "mine.*", "outer.steps=1", "steps=20")
    assert done.code == 0, done.err
    assert all(name in done.out for name in ("lr.warmup", "lr.final", "beta1"))


def test_the_library_example_runs(capsys):
    (code,) = (block for block in blocks("python") if "hypergradient(" in block)
    exec(compile(code, "README.md", "exec"), {})
    assert "weight_decay" in capsys.readouterr().out


def test_the_recipe_shown_is_the_one_that_the_demo_runs():
    (shown,) = (block for block in blocks("yaml") if "call: digits" in block)
    ships = yaml.safe_load(shipped()["digits_lr"].read_text())
    for key, value in yaml.safe_load(shown).items():
        if key == "dataset":
            assert value.items() <= ships[key].items()
        else:
            assert ships[key] == value


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert link.startswith("https://") or (README.parent / link).exists()


def test_the_demo_output_names_every_hyperparameter():
    (output,) = (block for block in blocks("") if "outer 0/10" in block)
    assert all(name in output for name in ("lr", "momentum", "weight_decay", "test accuracy"))


def test_the_optimizer_of_ones_own_runs_in_every_mode():
    import torch

    from hyperopt_cli import hypergradient
    from tests.cases import net_problem

    text = (README.parent / "docs" / "optimizers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {"__name__": "mine"}
    exec(compile(code, "optimizers.md", "exec"), names)
    problem = net_problem(names["SmoothSign"]())
    hyper = {"lr": torch.tensor(0.05, dtype=torch.float64), "decay": torch.tensor(0.8, dtype=torch.float64)}
    reverse, *others = (hypergradient(problem, hyper, mode).grad for mode in ("reverse", "forward", "reversible"))
    for grad in others:
        for name in hyper:
            assert abs(grad[name] - reverse[name]) < 1e-9
