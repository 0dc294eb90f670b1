"""`hyperopt run` from end to end, on real digits."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from hyperopt_cli.run_directory.reading import read
from tests.cli.test_bad_input import GOOD
from tests.forked import forked

HYPEROPT = [sys.executable, "-c", "from hyperopt_cli.cli import main; main()"]
SHORT = ["steps=20", "outer.steps=2"]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


def metrics(directory):
    return [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]


def without_cost(lines):
    return [{k: v for k, v in line.items() if k not in ("wall_s", "peak_bytes")} for line in lines]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_run_says_what_the_package_logs_while_it_waits(form, hyperopt, recipe, monkeypatch):
    from hyperopt_cli.modes import Forward

    differentiate = Forward.differentiate

    def logging_first(self, *arguments):
        logging.getLogger("hyperopt_cli.modes").info("compiling a step of %d operators", 7)
        return differentiate(self, *arguments)

    monkeypatch.setattr(Forward, "differentiate", logging_first)
    code, out, _ = hyperopt("run", recipe, *SHORT, "--mode", "forward", *form)
    assert code == 0
    said = "compiling a step of 7 operators"
    first = next(i for i, line in enumerate(out.splitlines()) if said in line)
    assert any("outer" in line for line in out.splitlines()[first:])
    logger = logging.getLogger("hyperopt_cli")
    assert not logger.handlers


def test_the_run_directory_holds_what_the_contract_names(hyperopt, tmp_path, recipe):
    code, out, _ = hyperopt("run", recipe, *SHORT, "--out", "there")
    assert code == 0
    there = tmp_path / "there"
    names = {
        "recipe.yaml",
        "resolved.yaml",
        "environment.json",
        "status.json",
        "metrics.jsonl",
        "result.json",
        "model.pt",
        "measurements.json",
        "tensorboard",
        "checkpoints",
    }
    assert {path.name for path in there.iterdir()} == names
    assert (there / "recipe.yaml").read_text() == GOOD
    assert "steps: 20" in (there / "resolved.yaml").read_text()
    lines = metrics(there)
    assert [line["outer_step"] for line in lines] == [0, 1, 2]
    assert lines[0]["hyperparameters"]["lr"] == pytest.approx([0.1, 0.1])
    assert lines[0]["hyperparameters"]["momentum"] == pytest.approx(0.9)
    assert {"validation_loss", "hypergradient", "wall_s", "peak_bytes"} <= set(lines[0])
    result = json.loads((there / "result.json").read_text())
    best = min(lines, key=lambda line: line["validation_loss"])
    assert result["best"]["outer_step"] == best["outer_step"]
    assert result["best"]["validation_loss"] == best["validation_loss"]
    assert result["initial"]["validation_loss"] == lines[0]["validation_loss"]
    assert result["status"] == "done"
    assert 0 < result["test"]["best"]["accuracy"] <= 1
    assert json.loads((there / "status.json").read_text())["state"] == "done"
    assert "tensorboard --logdir there/tensorboard" in out


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_the_same_seed_gives_the_same_bits(hyperopt, recipe, mode):
    for out in ("a", "b"):
        assert hyperopt("run", recipe, *SHORT, "--mode", mode, "--out", out).code == 0
    assert hyperopt("run", recipe, *SHORT, "--mode", mode, "--out", "c", "seed=1").code == 0
    assert without_cost(metrics("a")) == without_cost(metrics("b"))
    assert without_cost(metrics("a")) != without_cost(metrics("c"))


def test_both_modes_measure_the_same(hyperopt, recipe):
    for mode in ("forward", "reverse"):
        assert hyperopt("run", recipe, *SHORT, "precision=float64", "--mode", mode, "--out", mode).code == 0
    for one, other in zip(metrics("forward"), metrics("reverse"), strict=True):
        for name, grad in one["hypergradient"].items():
            torch.testing.assert_close(
                torch.tensor(grad), torch.tensor(other["hypergradient"][name]), rtol=1e-5, atol=1e-7
            )


def test_json_lines_are_for_machines(hyperopt, recipe):
    code, out, _ = hyperopt("run", recipe, *SHORT, "--json", "--out", "there")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["outer_step"] for line in lines[:-1]] == [0, 1, 2]
    assert lines[-1]["result"]["status"] == "done"
    assert lines[-1]["directory"] == "there"


def test_divergence_names_the_step_keeps_the_best_and_ends_with_3(hyperopt, recipe):
    steps = ["outer.optimizer=sgd", "outer.lr=1e7", "outer.steps=3", "hyperparameters.lr.transform=identity"]
    code, _, err = hyperopt("run", recipe, "steps=40", *steps, "--out", "there")
    assert code == 3
    assert "inner step" in err
    run = read(Path("there"))
    assert run.state == "diverged"
    assert run.result.status == "diverged"
    assert run.result.best.outer_step == run.result.initial.outer_step == 0
    assert len(run.metrics) == 1


EXPLODING = [
    "model.hidden=[50]",
    "steps=120",
    "outer.steps=2",
    "mode=reverse",
    "hyperparameters.lr.initial=1.0",
]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_noise_is_said_to_be_noise_wherever_a_run_speaks(form, hyperopt, recipe):
    """digits at a rate and a momentum that are too high: E is finite, and so is its useless hypergradient."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, out, err = hyperopt("run", recipe, *EXPLODING, "--out", "there", *form)
    assert code == 3
    assert "the hypergradient is noise" in err
    assert "the hypergradient is noise" in out  # the log
    (line,) = metrics("there")
    assert line["digits"] == 0
    assert line["growth"] > 1e4
    assert line["num_asked_steps"] == 240
    assert line["noise"] in err
    if form:
        shown = next(each for each in map(json.loads, out.splitlines()) if "outer_step" in each)
        assert shown["noise"] == line["noise"]
    else:
        assert "hypergradient: noise, 0 digits" in next(
            each for each in out.splitlines() if each.startswith("outer 0/")
        )
    run = read(Path("there"))
    assert run.state == run.result.status == "diverged"
    assert run.result.best.validation_loss == run.metrics[0].validation_loss == line["validation_loss"]
    assert run.metrics[0].noise == line["noise"]
    page = EventAccumulator("there/tensorboard")
    page.Reload()
    assert page.Scalars("trust/digits")[0].value == 0
    assert page.Scalars("trust/log10_growth")[0].value > 4
    assert b"the hypergradient is noise" in page.Tensors("noise/text_summary")[0].tensor_proto.string_val[0]


def test_a_run_without_noise_has_its_digits_in_the_metrics(hyperopt, recipe):
    code, out, _ = hyperopt("run", recipe, *SHORT, "--out", "there")
    assert code == 0
    assert "hypergradient:" not in out
    assert all(line["digits"] > 4 and line["growth"] < 100 and "noise" not in line for line in metrics("there"))


def test_divergence_at_the_start_is_told_too(hyperopt, recipe):
    code, _, err = hyperopt("run", recipe, "steps=200", "hyperparameters.lr.initial=1e20", "--out", "there")
    assert code == 3
    assert "inner step" in err
    result = json.loads(Path("there/result.json").read_text())
    assert result["best"] is None


def test_ctrl_c_keeps_what_was_measured_and_ends_with_130(tmp_path, recipe):
    command = [*HYPEROPT, "run", str(recipe), "steps=50", "outer.steps=1000", "--out", "there"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "there/metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    run = read(tmp_path / "there")
    assert run.state == "interrupted"
    assert run.result.best is not None


def test_a_terminal_gets_a_live_display(tmp_path, recipe):
    ours, theirs = pty.openpty()
    process = forked(
        *("run", str(recipe), *SHORT, "--out", "there"),
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait(timeout=60) == 0
    text = shown.decode(errors="replace")
    assert "\x1b[" in text  # it is drawn over, not appended
    assert "validation" in text
    assert "left" in text
    assert "after (outer step" in text


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible", "auto"])
def test_show_tells_the_run_again(mode, hyperopt, recipe):
    assert hyperopt("run", recipe, *SHORT, "--out", "there", "--mode", mode).code == 0
    code, out, _ = hyperopt("show", "there")
    assert code == 0
    assert "there: done" in out
    assert "test accuracy" in out


def test_an_own_model_and_data_set_run(hyperopt, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def model(width=8):\n"
        "    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))\n"
        "def data():\n"
        "    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))\n"
        "    return x, x.sum(dim=1)\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "model: {call: mine.model, width: 4}\n"
        "dataset: {call: mine.data, batch_size: 20}\n"
        "loss: mse\n"
        "optimizer: {name: adam}\n"
        "steps: 10\n"
        "hyperparameters: {lr: 0.01}\n"
        "outer: {steps: 1}\n"
    )
    refused = hyperopt("run", "mine.yaml")
    assert refused.code == 2
    assert "--allow-import 'mine.*'" in refused.err
    code, out, err = hyperopt("run", "mine.yaml", "--allow-import", "mine.*")
    assert code == 0, err
    assert "test" not in out.partition("after")[2]  # there is no test split


MISFITS = {
    "a tuple": ("return x, 1", "nn.functional.cross_entropy(outputs, targets)", "returned a tuple"),
    "an error": ("raise KeyError('x')", "nn.functional.cross_entropy(outputs, targets)", "KeyError"),
    "a vector": ("return x", "outputs.sum(dim=1)", "returned a tensor of shape [32]"),
    "no tensor": ("return x", "0.5", "returned float"),
    "an argmax": ("return x", "(outputs.argmax(1) == targets).float().mean()", "depends on no parameter"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_together_is_told_before_anything_is_written(hyperopt, tmp_path, case, monkeypatch):
    end, loss, said = MISFITS[case]
    module = f"fits_{case.replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text(
        "from torch import nn\n"
        "class Model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        x = self.layer(x.flatten(1))\n"
        f"        {end}\n"
        "def loss(outputs, targets):\n"
        f"    return {loss}\n"
    )
    text = GOOD.replace("{call: mlp, hidden: [8]}", f"{{call: {module}.Model}}\nloss: {{call: {module}.loss}}")
    (tmp_path / "own.yaml").write_text(text)
    code, _, err = hyperopt("run", "own.yaml", "--allow-import", f"{module}.*", "--out", "there")
    assert code == 2
    assert said in err
    assert "own.yaml:" in err
    assert not (tmp_path / "there").exists()


def test_models_of_torchvision_get_the_number_of_classes(tmp_path):
    from hyperopt_cli.instantiate import build
    from hyperopt_cli.recipe import load

    text = GOOD.replace("mlp, hidden: [8]", "torchvision.models.resnet18").replace(
        "digits, batch_size: 32", "synthetic, num_classes: 7, image_shape: [3, 32, 32], num_examples: 40, batch_size: 4"
    )
    (tmp_path / "own.yaml").write_text(text)
    experiment = build(load(tmp_path / "own.yaml"))
    assert experiment.make_model(0).fc.out_features == 7


def test_show_tells_why_a_run_failed(hyperopt, recipe):
    hyperopt("run", recipe, "steps=200", "hyperparameters.lr.initial=1e20", "--out", "there")
    code, out, _ = hyperopt("show", "there")
    assert code == 0
    assert "diverged" in out
    assert "inner step" in out
    assert "no outer step was measured" in out


def test_reversible_mode_tells_the_fractions_that_it_used(hyperopt, tmp_path):
    done = hyperopt(
        "run", "digits_lr", "outer.steps=1", "steps=5", "--mode", "reversible", "--out", str(tmp_path / "run")
    )
    assert done.code == 0, done.err
    assert "exact arithmetic multiplies by momentum 1/2" in done.out
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in written if line["hypergradient"] is not None]
    assert lines[0]["factors"] == {"momentum": "1/2"}
    after = Fraction(lines[1]["factors"]["momentum"])
    tuned = lines[1]["hyperparameters"]["momentum"]
    assert abs(after - Fraction(tuned)) <= (1 - Fraction(tuned)) / 10**6


def test_the_engine_that_auto_chose_is_told_once_with_the_reason(hyperopt, recipe):
    _, out, _ = hyperopt("run", recipe, *SHORT, "--mode", "forward", "--out", "there")
    told = [line for line in out.splitlines() if line.startswith("engine ")]
    assert len(told) == 1
    assert ": the default, for measuring takes a horizon of " in told[0]
