"""`hyperopt compare` from end to end."""

import json
import os
import pty
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperopt_cli import Reverse, errors
from hyperopt_cli.modes import MODES
from hyperopt_cli.run_directory.reading import read
from hyperopt_cli.run_directory.status import read_status
from tests.cli.test_bad_input import GOOD
from tests.forked import forked

BOTH = ["--modes", "forward,reverse"]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


class Wrong(Reverse):
    """Reverse mode with a hypergradient that is off by a hundredth."""

    def differentiate(self, problem, hyper, account, measurements):
        out = super().differentiate(problem, hyper, account, measurements)
        return out._replace(grad={name: 1.01 * x for name, x in out.grad.items()})


class Biased(Wrong):
    """The same, and it says so."""

    def differentiate(self, problem, hyper, account, measurements):
        out = super().differentiate(problem, hyper, account, measurements)
        return out._replace(stats={**out.stats, "bias": "a hundredth too large"})


class Refusing(Reverse):
    def differentiate(self, problem, hyper, account, measurements):
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
    modes = "forward:columns_at_once=2,reverse:slots=3,reverse:slots.host=4,reverse:window=5,reverse:path=linear"
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


def test_json_is_one_object_and_the_runs_of_the_modes_say_the_same(hyperopt, recipe):
    modes = "forward,reverse:slots=2,reverse:window=1,reversible"
    code, out, _ = hyperopt("compare", recipe, "--modes", modes, "--json", "--out", "there")
    content = json.loads(out)
    assert code == 0
    assert content["directory"] == "there"
    folders = ["forward", "reverse-slots-2", "reverse-window-1", "reversible"]
    for folder, each in zip(folders, content["comparison"]["modes"], strict=True):
        run = read(Path("there") / folder)
        (step,) = run.metrics
        assert (run.state, run.result.status, run.result.mode) == ("done", "done", folder.partition("-")[0])
        assert step.validation_loss == run.result.best.validation_loss == each["validation_loss"]
        assert step.hypergradient == each["hypergradient"]
        cost = {key: getattr(step, key) for key in ("wall_s", "peak_bytes", "num_gradients", "num_hvps")}
        assert cost.items() <= each["cost"].items()
        assert step.digits == each["digits"]
        assert step.factors == {"momentum": "9/10"}, "every mode ran at those of reversible"
        assert step.bias == run.result.bias == (each["reason"] if each["status"] == "biased" else None)


def test_the_directory_of_a_mode_is_that_of_a_run(hyperopt, recipe, tmp_path):
    assert (
        hyperopt("compare", recipe, *BOTH, "--steps", "4", "outer={optimizer: adam, lr: 0.1}", "--out", "there").code
        == 0
    )
    assert (
        hyperopt(
            "run",
            recipe,
            "steps=4",
            "outer={optimizer: adam, lr: 0.1}",
            "outer.steps=0",
            "mode=forward",
            "--out",
            "run",
        ).code
        == 0
    )
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"forward", "reverse"}
    there, run = tmp_path / "there/forward", tmp_path / "run"
    assert {path.name for path in there.iterdir()} == {path.name for path in run.iterdir()} - {
        "checkpoints",
        "model.pt",
    }
    assert (there / "recipe.yaml").read_text() == GOOD
    assert (there / "resolved.yaml").read_text() == (run / "resolved.yaml").read_text()
    (line,), (wanted,) = read(there).metrics, read(run).metrics
    same = {"wall_s": wanted.wall_s, "peak_bytes": wanted.peak_bytes}
    assert line._replace(**same) == wanted
    assert set(read(there).result.to_json()) == set(read(run).result.to_json())


def test_the_run_of_a_mode_can_be_continued_as_one(hyperopt, recipe):
    assert hyperopt("compare", recipe, *BOTH, "outer.optimizer=adam", "--out", "there").code == 0
    (before,) = read(Path("there/reverse")).metrics
    assert hyperopt("run", "outer.steps=1", "--resume", "there/reverse").code == 0
    first, _ = read(Path("there/reverse")).metrics
    assert first.hypergradient == before.hypergradient


def test_by_default_the_directory_is_named_after_the_recipe_and_nothing_is_overwritten(hyperopt, recipe, tmp_path):
    assert hyperopt("compare", recipe, *BOTH).code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("compare-small-")
    code, _, err = hyperopt("compare", recipe, *BOTH, "--out", made)
    assert code == 2
    assert "--out" in err


def test_show_shows_the_run_of_a_mode(hyperopt, recipe):
    (loss, *_) = json.loads(hyperopt("compare", recipe, *BOTH, "--json", "--out", "there").out)["comparison"]["modes"]
    code, shown, _ = hyperopt("show", "there/forward")
    assert code == 0
    assert "there/forward: done" in shown
    assert f"{loss['validation_loss']:.5g}" in shown
    code, _, err = hyperopt("show", "there")
    assert code == 2
    assert "hyperopt runs there" in err


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
    changes = ["outer={optimizer: adam, seed: fresh}", "outer.steps=0", "precision=float64"]
    assert hyperopt("run", recipe, *changes, "--mode", "forward", "--out", "run").code == 0
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
    assert [read(Path("there") / mode).state for mode in ("forward", "reverse")] == ["done", "done"]
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
    refused, forward = read(Path("there/reverse")), read(Path("there/forward"))
    assert (refused.state, refused.metrics, refused.result) == ("failed", [], None)
    assert read_status(refused.directory)["reason"] == "refused: it does not suit the optimizer"
    assert forward.metrics[0].num_gradients == 3


def test_reversible_refuses_nesterov_and_names_what_to_use(hyperopt, recipe):
    code, out, _ = hyperopt("compare", recipe, "optimizer.nesterov=true")
    assert code == 2
    assert "reversible: refused" in out
    assert "slots" in out
    assert out.count(" exact") == 2


def test_divergence_ends_with_3(hyperopt, recipe):
    changes = ["steps=200", "hyperparameters.lr.initial=1e20"]
    code, out, err = hyperopt("compare", recipe, *BOTH, *changes, "--out", "there")
    assert code == 3
    assert "inner step" in out
    assert "forward (diverged), reverse (diverged)" in err
    run = read(Path("there/reverse"))
    assert (run.state, run.result.status, run.result.best) == ("diverged", "diverged", None)
    assert "inner step" in read_status(run.directory)["reason"]


def test_what_no_mode_can_differentiate_ends_the_comparison_and_is_in_its_status(hyperopt, recipe, monkeypatch):
    class Drawing(Reverse):
        def differentiate(self, problem, hyper, account, measurements):
            raise errors.NonDeterministicError("it draws without a seed")

    monkeypatch.setitem(MODES, "reverse", Drawing)
    code, _, err = hyperopt("compare", recipe, "--modes", "reverse,forward", "--out", "there")
    assert code == 2
    assert "it draws without a seed" in err
    assert [path.name for path in Path("there").iterdir()] == ["reverse"]
    run = read(Path("there/reverse"))
    assert run.state == "failed"
    assert "it draws without a seed" in read_status(run.directory)["reason"]


def test_ctrl_c_ends_with_130_and_leaves_no_half_a_comparison(hyperopt, recipe, tmp_path, monkeypatch):
    class Interrupted(Reverse):
        def differentiate(self, problem, hyper, account, measurements):
            raise KeyboardInterrupt

    monkeypatch.setitem(MODES, "reverse", Interrupted)
    code, _, err = hyperopt("compare", recipe, *BOTH, "--out", "there")
    assert code == 130
    assert "there has those that had" in err
    assert "Traceback" not in err
    assert read(Path("there/forward")).state == "done"
    run = read(Path("there/reverse"))
    assert (run.state, run.metrics, run.result) == ("interrupted", [], None)


MISTAKES = {
    "an unknown mode": (["--modes", "forward,revers"], "did you mean reverse"),
    "an unknown argument": (["--modes", "forward:columnsatonce=3"], "did you mean columns_at_once"),
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
    _, _, err = hyperopt("compare", recipe, "--modes", "revers,forward:engine=warp,forward:columnsatonce=3")
    assert all(said in err for said in ("did you mean reverse", "warp", "did you mean columns_at_once"))


def test_tensorboard_has_a_run_for_each_mode(hyperopt, recipe, tmp_path):
    modes = ["forward", "forward:columns_at_once=2"]
    _, out, _ = hyperopt("compare", recipe, "--modes", ",".join(modes), "--out", "there")
    assert "tensorboard --logdir there" in out
    for folder in ("forward", "forward-columns_at_once-2"):
        (step,) = read(Path("there") / folder).metrics
        events = EventAccumulator(str(tmp_path / "there" / folder / "tensorboard")).Reload()
        figures = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
        assert figures["cost/wall_s"] == pytest.approx(step.wall_s, rel=1e-6)
        assert figures["loss/validation"] == pytest.approx(step.validation_loss, rel=1e-6)
        assert figures["hypergradients/lr/1"] == pytest.approx(step.hypergradient["lr"][1], rel=1e-6)


def test_a_terminal_sees_which_mode_is_at_which_step(tmp_path, recipe):
    ours, theirs = pty.openpty()
    process = forked(
        *("compare", str(recipe), "--modes", "reverse", "steps=300"),
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
