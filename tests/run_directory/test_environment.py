import json
import subprocess
from pathlib import Path

import pytest
import torch

from hyperopt_cli.run_directory.environment import command_line, environment


def test_versions_and_device_are_named() -> None:
    found = environment(arguments=["hyperopt", "run", "digits"])
    assert found["torch"] == torch.__version__
    assert found["command"] == ["hyperopt", "run", "digits"]
    assert found["device"]
    assert found["threads"] == torch.get_num_threads()


def test_no_environment_variable_and_no_absolute_path_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "s3cr3t-value")
    monkeypatch.chdir(tmp_path)
    given = [
        "/usr/bin/hyperopt",
        "run",
        f"{tmp_path}/recipes/my.yaml",
        "--out=/data/me/run",
        "dataset.root=/data/mnist",
    ]
    text = json.dumps(environment(arguments=given))
    assert "s3cr3t-value" not in text
    assert "/data" not in text
    assert str(tmp_path) not in text


def test_a_path_below_the_working_directory_stays_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line([f"{tmp_path}/recipes/my.yaml", "lr=0.1"]) == ["recipes/my.yaml", "lr=0.1"]


def test_outside_of_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git_commit"] is None


def test_the_commit_of_the_working_directory_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert (environment()["git_commit"], environment()["git_changed"]) == (head, False)
