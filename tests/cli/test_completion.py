"""What Tab proposes: by the script that typer installs in bash, and by what zsh and fish are answered."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hyperopt_cli.cli.completion import recipes
from hyperopt_cli.recipe import shipped
from hyperopt_cli.recipe.completing import key_completions, value_completions

NAMES = ("", "sgd", "null", "adam", "adamw", "rmsprop")
ROOT = Path(__file__).parents[2]
DATA = {"model": {"call": "mlp", "hidden": [10]}, "steps": 7, "hyperparameters": {"lr": {"initial": 0.1}, "beta": 0.5}}


def zsh(hyperopt, monkeypatch, typed):
    """The candidates for a line that ends where the cursor is."""
    monkeypatch.setenv("_HYPEROPT_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    code, out, err = hyperopt()
    assert (code, err) == (0, "")
    return [line.split('"')[1] for line in out.removeprefix("_arguments '*: :((").splitlines() if '"' in line]


@pytest.mark.parametrize(
    ("typed", "candidates"),
    [
        ("hyperopt pl", ["plan"]),
        ("hyperopt run --resume-", ["--resume-anyway"]),
        ("hyperopt run mn", ["mnist_lr"]),
        ("hyperopt cat quad", ["quadratic"]),
        ("hyperopt run digits_lr --mode rev", ["reverse", "reversible"]),
        ("hyperopt submit digits_lr --to ", ["slurm", "kubernetes"]),
        ("hyperopt bench rev", ["reversal"]),
        ("hyperopt run digits_lr optimizer.na", [f"optimizer.name={name}" for name in NAMES]),
        ("hyperopt run digits_lr steps=5 outer.on_nonfinite=s", ["outer.on_nonfinite=stop"]),
        ("hyperopt validate digits_lr model.h", ["model.hidden="]),
        ("hyperopt submit digits_lr --array see", ["seed=", "seed=0"]),
        ("hyperopt run nowhere.yaml prec", [f"precision={p}" for p in ("", "float32", "float64", "tf32", "bf16")]),
        ("hyperopt run digits_lr nonsense.ke", []),
    ],
)  # fmt: skip
def test_commands_options_recipes_and_keys_are_completed(hyperopt, monkeypatch, typed, candidates):
    assert zsh(hyperopt, monkeypatch, typed) == candidates


def test_fish_is_answered_a_line_for_each_candidate(hyperopt, monkeypatch):
    monkeypatch.setenv("_HYPEROPT_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "hyperopt run digits_lr optimizer.name=ad")
    assert hyperopt().out.split() == ["optimizer.name=adam", "optimizer.name=adamw"]


@pytest.fixture
def bash(tmp_path):
    """`bash("run", "digits")`: the candidates in a bash where completion was installed, by its words."""
    program = tmp_path / "bin" / "hyperopt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hyperopt_cli "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env |= {"PATH": f"{program.parent}:{os.environ['PATH']}", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}

    def call(text, *words):
        command = ["bash", "--norc", "-c", text, "bash", "hyperopt", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout

    call("hyperopt --install-completion bash")
    assert (tmp_path / ".bashrc").is_file()
    line = 'source ~/.bashrc; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _hyperopt_completion hyperopt; '
    return lambda *words: call(line + 'printf "%s\\n" "${COMPREPLY[@]}"', *words).split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_with_the_script_that_is_installed(bash):
    assert bash("run", "digits") == ["digits_lr"]
    assert bash("run", "digits_lr", "optimizer.nam")[:2] == ["optimizer.name=", "optimizer.name=sgd"]
    # behind an equals sign the word begins anew
    assert bash("run", "digits_lr", "optimizer.name", "=") == ["sgd", "null", "adam", "adamw", "rmsprop"]
    assert bash("run", "digits_lr", "optimizer.name", "=", "ad") == ["adam", "adamw"]
    assert bash("run", "digits_lr", "steps", "=", "5", "shar")[0] == "shard="
    assert "model." in bash("run", "digits_lr", "steps", "=", "5", "")


@pytest.mark.parametrize(
    "typed", ["hyperopt ", "hyperopt run ", "hyperopt run digits_lr optimizer.na", "hyperopt run d --mode "]
)
def test_completion_loads_nothing_that_takes_long(typed):
    code = "import sys; sys.argv = ['hyperopt']\nfrom hyperopt_cli.__main__ import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'torchvision', 'matplotlib', 'tensorboard'} & set(sys.modules)))"
    env = {**os.environ, "_HYPEROPT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": typed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    proposed, loaded = done.stdout.strip().rsplit("\n", 1)
    assert proposed.startswith("_arguments")
    assert loaded == "[]"


def test_files_of_recipes_and_folders_stand_beside_the_names_of_those_that_ship(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "more.yml", "notes.txt", "there/deep/a.yaml", "there/deep/b.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert recipes("") == [*shipped(), "mine.yaml", "more.yml", "there/"]
    assert recipes("m") == ["mnist_lr", "mine.yaml", "more.yml"]
    assert recipes("./m") == ["./mine.yaml", "./more.yml"]
    assert recipes("th") == ["there/deep/a.yaml", "there/deep/b.yaml"]
    assert recipes("nowhere/") == recipes("[") == []


def test_keys_are_those_of_the_schema_and_those_of_the_recipe():
    assert key_completions(DATA, "hyperparameters.") == [
        f"hyperparameters.{k}" for k in ("lr=", "lr.", "beta=", "beta.")
    ]
    assert key_completions(DATA, "hyperparameters.beta.v") == [
        "hyperparameters.beta.value=",
        "hyperparameters.beta.value=null",
    ]
    assert key_completions(DATA, "hyperparameters.lr.i") == [
        "hyperparameters.lr.initial=" + v for v in ("", "0.1", "null")
    ]
    assert key_completions(DATA, "mod") == ["model.", "mode=", "mode."]
    assert key_completions(DATA, "optim") == ["optimizer.name=", "optimizer.call="]
    assert key_completions(None, "stesp") == key_completions(DATA, "steps.") == key_completions(DATA, "..") == []


def test_values_are_the_recipes_own_the_default_and_all_that_can_be_listed():
    assert value_completions(DATA, "steps") == ["7"]
    assert value_completions(DATA, "outer.steps") == ["10"]
    assert value_completions(DATA, "dataset.flip") == ["false", "true"]
    assert value_completions(DATA, "model.hidden") == []  # a shell would take brackets for a pattern
    assert value_completions(DATA, "unknown") == []
