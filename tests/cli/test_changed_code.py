"""A run whose own code has changed is continued only with `--resume-anyway`, which the record says."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from hyperopt_cli.commands.keeping import RunKeeper
from hyperopt_cli.errors import Stopped
from hyperopt_cli.run_directory.reading import read

CODE = """\
import torch
from {helper} import FACTOR
def data():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x, x[:, :1]
def model():
    return torch.nn.Linear(3, 1)
def loss(outputs, targets):
    return FACTOR * ((outputs - targets) ** 2).mean()
"""
RECIPE = """\
model: {{call: {own}.model}}
dataset: {{call: {own}.data, validation_fraction: 0.3, batch_size: 10, normalize: false}}
loss: {{call: {own}.loss}}
optimizer: {{name: sgd}}
precision: float64
steps: 4
hyperparameters:
  lr: {{initial: 0.02, schedule: {{warmup_cosine: {{warmup: {{value: 0.2}}}}}}}}
  momentum: {{value: 0.5}}
outer: {{optimizer: sign, lr: 0.3, steps: 1}}
mode: {{name: forward, compile: false, engine: reverse_over_reverse}}
"""


class Own:
    """Own modules whose names no other test has, and the command that runs them."""

    def __init__(self, n: int, hyperopt: Any) -> None:
        self.own, self.helper, self._hyperopt = f"own{n}", f"helper{n}", hyperopt
        self.allow = ("--allow-import", f"{self.own}.*")
        Path(f"{self.own}.py").write_text(CODE.format(helper=self.helper))
        self.write_helper("FACTOR = 1.0")
        Path("r.yaml").write_text(RECIPE.format(own=self.own))

    def write_helper(self, text: str) -> None:
        Path(f"{self.helper}.py").write_text(text + "\n")
        sys.modules.pop(self.helper, None)
        sys.modules.pop(self.own, None)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        code, out, err = self._hyperopt("run", *arguments)
        return code, out, err


@pytest.fixture
def own(hyperopt: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Own:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setattr("sys.path", list(sys.path))
    return Own(abs(hash(request.node.nodeid)), hyperopt)


def pasted(err: str, why: str) -> list[str]:
    """The arguments of the command that stands behind `why`."""
    (line,) = [line for line in err.splitlines() if line.startswith(why)]
    words = shlex.split(line.removeprefix(f"{why}: "))
    assert words[:2] == ["hyperopt", "run"]
    return words[2:]


def test_other_code_is_refused_and_goes_on_only_as_the_record_says(own: Own) -> None:
    assert own.run("r.yaml", "--out", "o", *own.allow)[0] == 0
    before = {path: path.read_bytes() for path in Path("o").rglob("*") if path.is_file() and path.name != ".lock"}
    own.write_helper("FACTOR = 0.1")
    code, _, err = own.run("--resume", "o", "outer.steps=3", *own.allow)
    assert code == 2
    assert f"{own.helper}.py changed since outer-000002 was made" in err
    assert {path: path.read_bytes() for path in before} == before
    assert own.run("r.yaml", "outer.steps=3", "--out", "o", "--resume", "auto", *own.allow)[0] == 2

    code, out, _ = own.run(*pasted(err, "to go on anyway"))
    assert code == 0
    assert f"{own.helper}.py changed since outer-000002" in out
    run = read(Path("o"))
    assert [line.sources_changed for line in run.metrics] == [None, None, [f"{own.helper}.py"], [f"{own.helper}.py"]]
    assert run.result is not None
    assert run.result.sources_changed == [{"outer_step": 2, "files": [f"{own.helper}.py"]}]
    assert json.loads(Path("o/status.json").read_text())["sources_changed"] == run.result.sources_changed
    # what it was continued with is its code from then on, and the record keeps what was
    code, _, _ = own.run("--resume", "o", "outer.steps=4", *own.allow)
    assert code == 0
    assert read(Path("o")).metrics[-1].sources_changed == [f"{own.helper}.py"]
    own.write_helper("FACTOR = 1.0")
    assert own.run("--resume", "o", "outer.steps=5", *own.allow)[0] == 2


def test_an_outer_step_that_was_begun_with_other_code_starts_again(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one training run would be made of both."""
    often = ("checkpoint_every_s=0.001", "steps=30", *own.allow)
    with monkeypatch.context() as patched:
        patched.setattr("hyperopt_cli.commands.keeping.SHARE", 1e6)
        save = RunKeeper.save

        def save_and_stop(self: RunKeeper, state: dict[str, Any]) -> None:
            save(self, state)
            if state["inner"]:
                raise Stopped(15)

        patched.setattr(RunKeeper, "save", save_and_stop)
        assert own.run("r.yaml", "--out", "o", *often)[0] == 75
    own.write_helper("FACTOR = 0.5")
    code, out, _ = own.run("--resume", "o", "--resume-anyway", *own.allow)
    assert code == 0
    assert "outer step 0 starts again: it was begun with other code" in out
    assert own.run("r.yaml", "--out", "other", *often)[0] == 0
    one, other = (read(Path(folder)).metrics for folder in ("o", "other"))
    assert [line.validation_loss for line in one] == [line.validation_loss for line in other]


def test_the_same_code_is_continued_and_nothing_is_said(own: Own) -> None:
    assert own.run("r.yaml", "--out", "o", *own.allow)[0] == 0
    assert own.run("--resume", "o", "outer.steps=2", "--resume-anyway", *own.allow)[0] == 0
    run = read(Path("o"))
    assert run.result is not None
    assert (run.result.sources_changed, run.metrics[-1].sources_changed) == ([], None)
    sources = json.loads(Path("o/environment.json").read_text())["sources"]
    assert set(sources) == {own.own, own.helper}


def test_leave_comes_from_the_command_line_or_the_environment_alone(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = own.run("r.yaml", "--out", "o")
    assert code == 2
    assert own.run(*pasted(err, "to give that leave"))[0] == 0
    code, _, err = own.run("--resume", "o", "outer.steps=2")  # a run directory gives no leave
    assert code == 2
    assert pasted(err, "to give that leave") == ["--resume", "o", "outer.steps=2", *own.allow]
    for between in " ,:":
        monkeypatch.setenv("HYPEROPT_ALLOW_IMPORT", f"other.*{between}{own.own}.*")
        assert own.run("--resume", "o", "outer.steps=2")[0] == 0
    monkeypatch.setenv("HYPEROPT_ALLOW_IMPORT", "other.*")
    assert own.run("--resume", "o", "outer.steps=3")[0] == 2
    assert own.run("--resume", "o", "outer.steps=3", *own.allow)[0] == 0


def test_what_is_fixed_stands_in_the_resolved_recipe_and_in_the_result(own: Own) -> None:
    assert own.run("r.yaml", "--out", "o", *own.allow)[0] == 0
    shape = "warmup_cosine:\n        warmup:\n          value: 0.2\n        final:\n          value: 0.01\n"
    assert shape in Path("o/resolved.yaml").read_text()
    fixed = json.loads(Path("o/result.json").read_text())["fixed"]
    assert fixed == {"lr.warmup": 0.2, "lr.final": 0.01, "momentum": 0.5}


def test_a_run_of_a_version_that_left_them_out_is_continued(own: Own) -> None:
    assert own.run("r.yaml", "--out", "o", *own.allow)[0] == 0
    resolved = Path("o/resolved.yaml")
    shorter = resolved.read_text().replace("        final:\n          value: 0.01\n", "")
    assert shorter != resolved.read_text()
    resolved.write_text(shorter)
    assert own.run("r.yaml", "outer.steps=2", "--resume", "o", *own.allow)[0] == 0


def test_the_recipe_and_its_overrides_are_those_of_the_run(own: Own) -> None:
    whole = ("r.yaml", "steps=5", "outer.steps=2", *own.allow)
    assert own.run("r.yaml", "steps=5", *own.allow, "--out", "o")[0] == 0
    written = Path("o/recipe.yaml").read_text()
    Path("r.yaml").unlink()
    assert own.run("--resume", "o", "outer.steps=2", *own.allow)[0] == 0
    assert Path("o/recipe.yaml").read_text() == written
    Path("r.yaml").write_text(written)
    assert own.run(*whole, "--out", "whole")[0] == 0
    losses = [[line.validation_loss for line in read(Path(name)).metrics] for name in ("o", "whole")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "RECIPE is missing"),
        (("--resume", "auto"), "RECIPE is missing"),
        (("--resume", "nowhere"), "nowhere is not a directory"),
        (("--resume", "empty"), "empty has no status.json"),
        (("--resume", "o", "steps=9"), "-steps: 4"),
        (("--resume", "o", "--out", "p"), "give one of them"),
        (("--resume", "o", "stesp=9"), "did you mean steps?"),
        (("r.yaml", "--resume-anyway"), "--resume-anyway: nothing is continued here"),
        (("r.yaml", "--out", "o"), "o holds a run or other files already"),
    ],
)
def test_what_cannot_be_continued_is_refused(arguments: tuple[str, ...], said: str, own: Own) -> None:
    Path("empty").mkdir()
    if "o" in arguments:
        assert own.run("r.yaml", "--out", "o", *own.allow)[0] == 0
    code, _, err = own.run(*arguments, *(own.allow if arguments else ()))
    assert code == 2
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("r.yaml", "--out", "o"), "to start another run"),
        (("r.yaml", "--out", "o"), "to continue the run there"),
        (("r.yaml", "--out", "o", "--resume", "never"), "to continue the run there"),
        (("--resume", "o", "steps=5"), "to start another run"),
        (("r.yaml", "--resume", "o", "--out=p"), "to continue that run"),
        (("r.yaml", "--resume-anyway", "--out", "o"), "to continue the run in --out, or the newest"),
    ],
)
def test_the_command_that_a_message_gives_goes_on(arguments: tuple[str, ...], why: str, own: Own) -> None:
    assert own.run("r.yaml", "--out", "o", *own.allow)[0] == 0
    code, _, err = own.run(*arguments, *own.allow)
    assert code == 2
    assert own.run(*pasted(err, why))[0] == 0
