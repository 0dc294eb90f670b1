"""A part of the package is one file and one line of `registry.py`, and is then everywhere where its kind is.

The package is copied to a temporary folder and gets one part of each kind; a fresh process names them in a recipe, on
the command line, in a plan and in a comparison.
"""

import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hyperopt_cli
from hyperopt_cli import registry

ROOT = Path(hyperopt_cli.__file__).parent
DICTIONARIES = ("MODES", "ENGINES", "OPTIMIZERS", "OUTER", "LOSSES", "MODELS", "DATA_SETS", "COMMANDS")

# file of the package -> the dictionary of the registry, the line there, what the file has
ADDED: dict[str, tuple[str, str, str]] = {
    "modes/differences.py": (
        "MODES",
        '"differences": Entry("hyperopt_cli.modes.differences:Differences", "two plain runs for each number"),',
        '''
from dataclasses import dataclass

import torch

from hyperopt_cli.dynamics.dynamics import Dynamics, train_step
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.plain_run import objective_after
from hyperopt_cli.modes.planning.counts import Counts


@dataclass(frozen=True)
class Differences(Mode):
    """Central differences of E."""

    spread: float = 1e-5

    def bias(self, steps):
        return "central differences"

    def differentiate(self, problem, hyper, account, measurements):
        dynamics = Dynamics.of(problem, hyper)
        state = dynamics.start
        for t in range(problem.steps):
            state, value = train_step(dynamics, problem.batch(t), t, state, dynamics.hyper_at(hyper, t))
            account.counts.add_steps(1)
            account.step_done(t, value)
        params = dynamics.layout.unpack(dynamics.result(state))
        grad = {}
        for name, value in hyper.items():
            flat = value.flatten()
            ends = [[self._moved(problem, hyper, name, i, by) for by in (1, -1)] for i in range(len(flat))]
            account.counts.add_steps(2 * len(flat) * problem.steps)
            slopes = [(up - down) / (2 * self.spread) for up, down in ends]
            grad[name] = torch.tensor(slopes, dtype=value.dtype).view(value.shape)
        return account.close(outer_objective(problem, params, hyper).value, grad, params)

    def _moved(self, problem, hyper, name, i, by):
        moved = hyper[name].flatten().clone()
        moved[i] += by * self.spread
        return objective_after(problem, {**hyper, name: moved.view(hyper[name].shape)})

    def predictions(self, basis):
        num = 1 + 2 * sum(value.numel() for value in basis.hyper.values())
        steps = num * basis.dynamics.problem.steps
        yield basis.prediction(self, steps * basis.plain_s, basis.reverse.peak_bytes, 0, Counts(steps, steps, 0))
''',
    ),
    "engines/in_turn.py": (
        "ENGINES",
        '"in_turn": Engine("hyperopt_cli.engines.in_turn:in_turn", "one by one", "double backward"),',
        '''
from hyperopt_cli.engines.reverse_over_reverse import reverse_over_reverse_loop


def in_turn(loss, params, hyper, w_dot, hyper_dot):
    """Takes the tangents of one column after the other."""
    return reverse_over_reverse_loop(loss, params, hyper, w_dot, hyper_dot)
''',
    ),
    "optimizers/shrinking.py": (
        "OPTIMIZERS",
        '"shrinking": Entry("hyperopt_cli.optimizers.shrinking:Shrinking", "lr, shrink"),',
        '''
from dataclasses import dataclass

from hyperopt_cli.optimizers.base import WEIGHTS, Coupling, Factor, InnerOptimizer, Share


@dataclass(frozen=True)
class Shrinking(InnerOptimizer):
    """w <- (1 - shrink) w - lr g."""

    lr: float = 0.1
    shrink: Share = 0.0

    def couplings(self, slots):
        factor = Factor("1 - shrink", "shrink", lambda a: 1 - a.shrink, lambda a, f: 1 - f)
        return (Coupling(WEIGHTS, lambda x, d, a: -a.lr * d, factor),)
''',
    ),
    "task/squared_hinge.py": (
        "LOSSES",
        '"squared_hinge": Loss("hyperopt_cli.task.squared_hinge:squared_hinge", "of classes, with a margin"),',
        '''
import torch
from torch import Tensor
from torch.nn import functional


def squared_hinge(outputs: Tensor, targets: Tensor, margin: Tensor | float = 1.0) -> Tensor:
    """Returns the mean of max(0, margin - y f)^2, with y = 1 for the class and -1 for others."""
    signs = 2 * functional.one_hot(targets, outputs.shape[1]).to(outputs) - 1
    return torch.relu(margin - signs * outputs).square().mean()
''',
    ),
    "models/bilinear.py": (
        "MODELS",
        '"bilinear": Entry("hyperopt_cli.models.bilinear:bilinear", "two linear layers"),',
        '''
import math

from torch import nn


def bilinear(input_shape: tuple[int, ...], num_classes: int, width: int = 4) -> nn.Module:
    """Makes a product of two linear maps."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.Linear(width, num_classes))
''',
    ),
    "data/rings.py": (
        "DATA_SETS",
        '"rings": DataSet("hyperopt_cli.data.rings:rings", "points on two circles"),',
        '''
import torch

from hyperopt_cli.data.seeds import generator
from hyperopt_cli.data.splits import InMemory, Splits


def rings(num_examples: int = 60, seed: int = 0) -> Splits:
    """Draws points on two circles, a class each."""
    angles = 6.28 * torch.rand(num_examples, generator=generator(seed, "rings"))
    targets = torch.arange(num_examples) % 2
    points = torch.stack([angles.cos(), angles.sin()], dim=1) * (1 + targets[:, None])
    part = InMemory(points, targets)
    return Splits(part, part, (2,), 2)
''',
    ),
    "outer/nudge.py": (
        "OUTER",
        '"nudge": Outer("hyperopt_cli.outer.nudge:Nudge", "a hundredth of a step against the sign"),',
        '''
from hyperopt_cli.outer.method import Ask, Method, Walk
from hyperopt_cli.outer.terrain import Terrain


class Nudge(Method):
    """Moves every coordinate by a hundredth of a step."""

    def walk(self, terrain: Terrain) -> Walk:
        """Yields one point after the other."""
        point = terrain.start
        while True:
            (answer,) = yield [Ask(point, gradient=True, has_fallback=False)]
            point = terrain.project(point - 0.01 * answer.grad.sign())
''',
    ),
    "cli/hello.py": (
        "COMMANDS",
        '"hello": "hyperopt_cli.cli.hello:hello",',
        '''
import typer


def hello() -> None:
    """Say hello."""
    typer.echo("hello from a command")
''',
    ),
}

RECIPE = """\
model: {call: bilinear, width: 3}
dataset: {call: rings, batch_size: 10, outer_batch_size: all, validation_fraction: 0.2}
loss: {call: squared_hinge, margin: 0.5}
optimizer: {name: shrinking}
steps: 5
hyperparameters: {lr: 0.05, shrink: 0.01}
outer: {optimizer: nudge, steps: 1}
mode: {name: differences, spread: 1.0e-4}
precision: float64
device: cpu
"""

SCRIPT = """\
import sys
from hyperopt_cli.cli.main import app
for line in sys.stdin.read().splitlines():
    print(">", line, flush=True)
    code = app(line.split(), prog_name="hyperopt", standalone_mode=False)
    assert not code, (line, code)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and what is added to it."""
    folder = tmp_path_factory.mktemp("house")
    package = folder / "hyperopt_cli"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    text = (package / "registry.py").read_text(encoding="utf-8")
    for file, (dictionary, line, source) in ADDED.items():
        assert not (package / file).exists()
        (package / file).write_text(f'"""Added by a test."""\n{source}', encoding="utf-8")
        head, opening, rest = text.partition(f"\n{dictionary}: dict")
        before, closing, after = rest.partition("\n}\n")
        text = f"{head}{opening}{before}\n    {line}{closing}{after}"
    (package / "registry.py").write_text(text, encoding="utf-8")
    (folder / "added.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def said(house: Path) -> dict[str, str]:
    """What each command said, in one fresh process."""
    commands = [
        "hello",
        *(f"ls {kind}" for kind in ("modes", "engines", "optimizers", "outer", "losses", "models", "datasets")),
        "schema",
        "validate added.yaml",
        "run added.yaml --out run",
        "run added.yaml mode.name=forward mode.engine=in_turn mode.spread=null --out by_engine",
        "plan added.yaml --json",
        "compare added.yaml --modes forward:engine=in_turn,reverse,differences --json --out compared",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    texts = ("\n" + done.stdout).split("\n> ")[1:]
    return {text.partition("\n")[0]: text.partition("\n")[2] for text in texts}


def test_one_file_and_one_line_each_were_added(house: Path) -> None:
    def files(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert files(house / "hyperopt_cli") - files(ROOT) == set(ADDED)
    before = (ROOT / "registry.py").read_text(encoding="utf-8").splitlines()
    after = (house / "hyperopt_cli" / "registry.py").read_text(encoding="utf-8").splitlines()
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert sorted(line[2:].strip() for line in changed) == sorted(line for _, line, _ in ADDED.values())
    assert {dictionary for dictionary, _, _ in ADDED.values()} == set(DICTIONARIES)


def test_a_command_that_was_added_runs(said: dict[str, str]) -> None:
    assert said["hello"] == "hello from a command"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("modes", "differences"),
        ("engines", "in_turn"),
        ("optimizers", "shrinking"),
        ("outer", "nudge"),
        ("losses", "squared_hinge"),
        ("models", "bilinear"),
        ("datasets", "rings"),
    ],
)
def test_ls_names_what_was_added(kind: str, name: str, said: dict[str, str]) -> None:
    lines = {line.split()[0]: line.partition("  ")[2].strip() for line in said[f"ls {kind}"].splitlines()}
    assert lines[name]


def test_the_schema_has_the_settings_of_the_mode_and_the_names(said: dict[str, str]) -> None:
    schema = json.loads(said["schema"])
    mode = schema["$defs"]["Mode"]["anyOf"][1]["properties"]
    assert "differences" in mode["name"]["enum"]
    assert {"type": "number"} in mode["spread"]["anyOf"]
    assert any("in_turn" in branch.get("enum", ()) for branch in mode["engine"]["anyOf"])
    name = schema["$defs"]["Optimizer"]["properties"]["name"]
    assert any("shrinking" in branch.get("enum", ()) for branch in name["anyOf"])


def test_a_recipe_runs_with_all_that_was_added(house: Path, said: dict[str, str]) -> None:
    assert said["validate added.yaml"].startswith("added.yaml: valid (tunes lr, shrink over 5 steps, mode differences)")
    resolved = (house / "run" / "resolved.yaml").read_text(encoding="utf-8")
    assert "spread: 0.0001" in resolved
    first, after = map(json.loads, (house / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    moved = after["hyperparameters"]["lr"] / first["hyperparameters"]["lr"]
    assert max(moved, 1 / moved) == pytest.approx(10**0.01)
    other = json.loads((house / "by_engine" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert other["validation_loss"] == pytest.approx(first["validation_loss"], rel=1e-12)
    for name, value in first["hypergradient"].items():
        assert value != 0
        assert other["hypergradient"][name] == pytest.approx(value, rel=1e-5)


def compared(said: dict[str, str]) -> dict[str, Any]:
    table = json.loads(next(text for line, text in said.items() if line.startswith("compare")))
    return {row["mode"]: row for row in table["comparison"]["modes"]}


def test_a_plan_has_a_biased_mode_with_exact_counts_and_does_not_take_it(said: dict[str, str]) -> None:
    plan = json.loads(said["plan added.yaml --json"])
    row = next(row for row in plan["predictions"] if row["name"] == "differences")
    assert row["fits"]
    assert row["is_biased"]
    assert row["num_steps"] == compared(said)["differences"]["cost"]["num_steps"] == 25
    assert plan["choice"] != "differences"


def test_a_comparison_has_the_mode_and_the_engine(said: dict[str, str]) -> None:
    rows = compared(said)
    assert {mode: (row["status"], row["reason"]) for mode, row in rows.items()} == {
        "forward:engine=in_turn": ("exact", None),
        "reverse": ("exact", None),
        "differences": ("biased", "central differences"),
    }
    assert max(rows["differences"]["difference"]["hypergradient"].values()) < 1e-5


@pytest.mark.parametrize("dictionary", DICTIONARIES)
def test_every_name_of_the_registry_is_there(dictionary: str) -> None:
    for name, entry in getattr(registry, dictionary).items():
        path = entry if isinstance(entry, str) else entry.path
        assert callable(registry.load(path)), name
        assert isinstance(entry, str) or entry.help, name
