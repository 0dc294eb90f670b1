"""`hyperopt compare` from end to end."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperopt_cli import Reverse, errors
from hyperopt_cli.modes import MODES
from hyperopt_cli.run_directory.comparison_log import mode_folder
from hyperopt_cli.run_directory.reading import read
from tests.cli.test_bad_input import GOOD

HYPEROPT = [sys.executable, "-c", "from hyperopt_cli.cli import main; main()"]
BOTH = ["--modes", "forward,reverse"]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


class Wrong(Reverse):
    """Reverse mode with a hypergradient that is off by a hundredth."""

    def differentiate(self, problem, hyper, account):
        out = super().differentiate(problem, hyper, account)
        return out._replace(grad={name: 1.01 * x for name, x in out.grad.items()})


class Biased(Wrong):
    """The same, and it says so."""

    def differentiate(self, problem, hyper, account):
        out = super().differentiate(problem, hyper, account)
        return out._replace(stats={**out.stats, "bias": "a hundredth too large"})


class Refusing(Reverse):
    def differentiate(self, problem, hyper, account):
        raise errors.UsageError("it does not suit the optimizer")


def test_modes_that_agree_end_with_0_and_a_table(hyperopt, recipe):
    code, out, err = hyperopt("compare", recipe, *BOTH)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    (forward,) = (line for line in lines if line[:1] == ["forward"] and "exact" in line)
    (reverse,) = (line for line in lines if line[:1] == ["reverse"] and "exact" in line)
    assert "reference" in forward
    assert float(reverse[2]) < 1e-5
    assert forward[1] == reverse[1]
    assert {line[0] for line in lines if line} >= {"lr[0]", "lr[1]", "momentum"}
    assert "3 steps in float32" in out


def test_the_hypergradient_of_quadratic_is_the_one_known_by_hand(hyperopt):
    code, out, _ = hyperopt("compare", "quadratic", *BOTH, "--json", "--device", "cpu")
    comparison = json.loads(out)["comparison"]
    assert code == 0
    for each in comparison["modes"]:
        assert each["hypergradient"]["lr"] == pytest.approx(-1.3292279957849188e-02, rel=1e-12)


@pytest.mark.parametrize("changes", [[], ["model={call: convnet, widths: [4, 4]}"]], ids=["mlp", "convnet"])
def test_the_three_modes_agree_on_digits(hyperopt, changes):
    code, out, err = hyperopt("compare", "digits_lr", *changes, "--steps", "12", "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    comparison = json.loads(out)["comparison"]
    assert [each["mode"] for each in comparison["modes"]] == ["forward", "reverse", "reversible"]
    assert {each["status"] for each in comparison["modes"]} == {"exact"}
    assert comparison["factors"] == {"in_use": {"momentum": [{"step": 0, "factor": "1/2"}]}, "moved": {}}
    assert comparison["modes"][2]["cost"]["bits_per_parameter"] >= 0
    for each in comparison["modes"]:
        assert max(each["difference"]["hypergradient"].values()) < 1e-5


def test_modes_take_arguments(hyperopt):
    modes = "forward:chunk_size=2,reverse:slots=3,reverse:slots.host=4,reverse:window=5,reverse:path=linear"
    code, out, _ = hyperopt("compare", "digits_lr", "--modes", modes, "--steps", "12", "--json")
    comparison = json.loads(out)["comparison"]
    assert code == 0
    assert [each["mode"] for each in comparison["modes"]] == modes.split(",")
    assert [each["status"] for each in comparison["modes"]] == [*["exact"] * 3, *["biased"] * 2]
    assert comparison["modes"][3]["reason"] == "truncated: only the last 5 of 12 steps"
    assert [each["cost"]["num_hvps"] for each in comparison["modes"][1:]] == [12, 12, 5, 12]
    assert comparison["modes"][1]["cost"]["num_steps"] > 12, "steps were taken again"
    assert comparison["modes"][3]["difference"]["hypergradient"]["lr"] > 0.1


def test_what_the_factors_move_is_told(hyperopt, recipe):
    code, out, _ = hyperopt("compare", recipe, "hyperparameters.momentum.initial=0.8765432", "precision=float64")
    assert code == 0
    assert "momentum is 0.8765432099 instead of 0.8765432 (step 0)" in out


def test_json_is_one_object_and_the_same_as_in_the_directory(hyperopt, recipe, tmp_path):
    code, out, _ = hyperopt("compare", recipe, *BOTH, "--json", "--out", "there")
    content = json.loads(out)
    assert code == 0
    assert content["directory"] == "there"
    assert content["comparison"] == json.loads((tmp_path / "there/comparison.json").read_text())


def test_the_directory_holds_what_was_compared(hyperopt, recipe, tmp_path):
    assert hyperopt("compare", recipe, *BOTH, "--steps", "4", "outer.lr=0.1", "--out", "there").code == 0
    there = tmp_path / "there"
    names = {"recipe.yaml", "resolved.yaml", "environment.json", "status.json", "comparison.json", "tensorboard"}
    assert {path.name for path in there.iterdir()} == names
    assert (there / "recipe.yaml").read_text() == GOOD
    resolved = (there / "resolved.yaml").read_text()
    assert "steps: 4" in resolved
    assert "lr: 0.1" in resolved
    run = read(there)
    assert (run.state, run.metrics, run.result) == ("done", [], None)
    assert run.comparison.steps == 4


def test_by_default_the_directory_is_named_after_the_recipe_and_nothing_is_overwritten(hyperopt, recipe, tmp_path):
    assert hyperopt("compare", recipe, *BOTH).code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("compare-small-")
    code, _, err = hyperopt("compare", recipe, *BOTH, "--out", made)
    assert code == 2
    assert "--out" in err


def test_show_tells_the_comparison_again(hyperopt, recipe):
    _, told, _ = hyperopt("compare", recipe, *BOTH, "--out", "there")
    code, again, _ = hyperopt("show", "there")
    assert code == 0
    assert "there: done" in again
    table = told.partition("\neverything")[0]
    assert table.strip() in again


def test_steps_shorten_the_horizon_and_the_schedule_with_it(hyperopt, recipe):
    runs = {
        steps: json.loads(hyperopt("compare", recipe, *BOTH, "--steps", steps, "--json").out)["comparison"]
        for steps in (4, 8)
    }
    for steps, comparison in runs.items():
        assert comparison["steps"] == steps
        for each in comparison["modes"]:
            assert each["cost"]["num_steps"] == steps
            assert all(abs(x) > 0 for x in each["hypergradient"]["lr"]), "both windows lie in the horizon"


def test_an_option_and_an_override_that_say_the_same_are_refused(hyperopt, recipe):
    for command, option, value, override in (
        ("compare", "--steps", 4, "steps=8"),
        ("run", "--mode", "forward", "mode=reverse"),
        ("run", "--mode", "reversible", "mode={name: reverse, slots: 5}"),
        ("plan", "--device", "cpu", "device=auto"),
    ):
        done = hyperopt(command, recipe, override, option, value)
        assert done.code == 2
        assert f"{option} {value}: got {override} too" in done.err


def test_the_start_is_that_of_a_run(hyperopt, recipe, tmp_path):
    changes = ["outer.seed=fresh", "outer.steps=0", "precision=float64"]
    assert hyperopt("run", recipe, *changes, "--out", "run").code == 0
    (line,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    out = hyperopt("compare", recipe, *changes, "--modes", "forward", "--json").out
    (forward,) = json.loads(out)["comparison"]["modes"]
    assert forward["validation_loss"] == line["validation_loss"]
    assert forward["hypergradient"] == line["hypergradient"]


def test_an_exact_mode_that_is_wrong_ends_with_4_after_everything_is_written(hyperopt, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(MODES, "reverse", Wrong)
    code, out, err = hyperopt("compare", recipe, *BOTH, "--out", "there")
    assert code == 4
    assert "reverse differs from forward" in err
    assert "the hypergradient of momentum by 0.01" in err
    assert "precision=float64" in err
    assert "everything is in there" in out
    assert (tmp_path / "there/comparison.json").exists()
    assert hyperopt("compare", recipe, *BOTH, "--tolerance", "0.02").code == 0


def test_a_biased_mode_ends_with_0(hyperopt, recipe, monkeypatch):
    monkeypatch.setitem(MODES, "reverse", Biased)
    code, out, _ = hyperopt("compare", recipe, "--modes", "reverse,forward")
    assert code == 0
    assert "reverse: biased: a hundredth too large" in out


def test_a_mode_that_refuses_is_a_row_and_ends_with_2(hyperopt, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(MODES, "reverse", Refusing)
    code, out, err = hyperopt("compare", recipe, "--modes", "reverse,forward", "--out", "there")
    assert code == 2
    assert "reverse: refused: it does not suit the optimizer" in out
    assert "no result from reverse (refused)" in err
    refused, forward = json.loads((tmp_path / "there/comparison.json").read_text())["modes"]
    assert (refused["status"], refused["cost"]) == ("refused", None)
    assert forward["cost"]["num_gradients"] == 3


def test_reversible_refuses_nesterov_and_names_what_to_use(hyperopt, recipe):
    code, out, _ = hyperopt("compare", recipe, "optimizer.nesterov=true")
    assert code == 2
    assert "reversible: refused" in out
    assert "slots" in out
    assert out.count(" exact") == 2


def test_divergence_ends_with_3(hyperopt, recipe):
    code, out, err = hyperopt("compare", recipe, *BOTH, "steps=200", "hyperparameters.lr.initial=1e20")
    assert code == 3
    assert "inner step" in out
    assert "forward (diverged), reverse (diverged)" in err


def test_ctrl_c_ends_with_130_and_leaves_no_half_a_comparison(hyperopt, recipe, tmp_path, monkeypatch):
    class Interrupted(Reverse):
        def differentiate(self, problem, hyper, account):
            raise KeyboardInterrupt

    monkeypatch.setitem(MODES, "reverse", Interrupted)
    code, _, err = hyperopt("compare", recipe, *BOTH, "--out", "there")
    assert code == 130
    assert "there has no result" in err
    assert "Traceback" not in err
    assert not (tmp_path / "there/comparison.json").exists()
    assert read(Path("there")).state == "interrupted"


MISTAKES = {
    "an unknown mode": (["--modes", "forward,revers"], "did you mean reverse"),
    "an unknown argument": (["--modes", "forward:chunksize=3"], "did you mean chunk_size"),
    "another mode's argument": (["--modes", "reverse:engine=auto"], "takes no engine"),
    "an argument without a value": (["--modes", "reverse:slots"], "KEY=VALUE"),
    "a wrong value": (["--modes", "forward:engine=warp"], "forward_over_reverse"),
    "no mode": (["--modes", ","], "NAME"),
    "no steps": (["--steps", "0"], "steps"),
    "too few steps for the schedule": (["--modes", "forward", "--steps", "1"], "2 over 1 steps"),
    "a negative tolerance": (["--tolerance", "-1"], "--tolerance"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_on_the_command_line_is_refused_before_anything_is_written(hyperopt, recipe, tmp_path, case):
    arguments, said = MISTAKES[case]
    code, _, err = hyperopt("compare", recipe, *arguments)
    assert code == 2
    assert said in err
    assert list(tmp_path.iterdir()) == [recipe]


def test_every_mistake_in_the_modes_is_told_at_once(hyperopt, recipe):
    _, _, err = hyperopt("compare", recipe, "--modes", "revers,forward:engine=warp,forward:chunksize=3")
    assert all(said in err for said in ("did you mean reverse", "warp", "did you mean chunk_size"))


def test_tensorboard_has_a_run_a_mode_and_the_tables(hyperopt, recipe, tmp_path):
    modes = ["forward", "forward:chunk_size=2"]
    assert hyperopt("compare", recipe, "--modes", ",".join(modes), "--out", "there").code == 0
    written = {each.mode: each for each in read(Path("there")).comparison.modes}
    folder = tmp_path / "there/tensorboard"
    for mode in modes:
        events = EventAccumulator(str(folder / mode_folder(mode))).Reload()
        figures = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
        cost = written[mode].cost
        assert figures["compare/num_hvps"] == cost.num_hvps
        assert figures["compare/wall_s"] == pytest.approx(cost.wall_s, rel=1e-6)
        assert figures["compare/validation_loss"] == pytest.approx(written[mode].validation_loss, rel=1e-6)
        assert figures["hypergradients/lr/1"] == pytest.approx(written[mode].hypergradient["lr"][1], rel=1e-6)
        difference = written[mode].difference.hypergradient["momentum"]
        assert figures["differences/momentum"] == torch.tensor(difference, dtype=torch.float32).item()
    texts = EventAccumulator(str(folder)).Reload()
    table = texts.Tensors("comparison/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| mode | validation loss | difference |" in table
    assert "| forward:chunk_size=2 |" in table


def test_a_terminal_sees_which_mode_is_at_which_step(tmp_path, recipe):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*HYPEROPT, "compare", str(recipe), "--modes", "reverse", "steps=300"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160", "OMP_NUM_THREADS": "1"},
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
    assert "reverse: backward" in text
    assert "/300" in text
    assert "reference" in text
