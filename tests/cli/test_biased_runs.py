"""A mode that is not exact says so wherever it reports."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperopt_cli import Reverse
from hyperopt_cli.run_directory.reading import read
from tests.cli.test_bad_input import GOOD

BIAS = Reverse(window=2).bias(3)
TRUNCATED = ["mode={name: reverse, window: 2}"]
SAID = f"the hypergradient is biased: {BIAS}"


@pytest.fixture
def finished(hyperopt, tmp_path):
    """The directory of a biased run and what it printed; and those of an exact one."""
    (tmp_path / "good.yaml").write_text(GOOD)
    exact = hyperopt("run", "good.yaml", "--mode", "reverse", "--out", "exact")
    biased = hyperopt("run", "good.yaml", *TRUNCATED, "--out", "biased")
    assert exact.code == biased.code == 0
    return (tmp_path / "biased", biased.out), (tmp_path / "exact", exact.out)


def test_the_first_and_the_last_lines_of_a_run_say_so(finished):
    (_, biased), (_, exact) = finished
    start, _, end = biased.partition("outer 0/")
    assert SAID in start
    assert SAID in end
    assert "bias" not in exact


def test_the_files_say_so_and_those_of_an_exact_run_have_no_such_key(finished):
    (biased, _), (exact, _) = finished
    lines = [[json.loads(line) for line in (of / "metrics.jsonl").read_text().splitlines()] for of in (biased, exact)]
    assert [line["bias"] for line in lines[0]] == [BIAS, BIAS]
    assert not any("bias" in line for line in lines[1])
    assert json.loads((biased / "result.json").read_text())["bias"] == BIAS
    assert "bias" not in json.loads((exact / "result.json").read_text())
    assert [line.bias for line in read(biased).metrics] == [BIAS, BIAS]
    assert read(biased).result.bias == BIAS
    assert read(exact).result.bias is read(exact).metrics[0].bias is None


def test_show_says_so(finished, hyperopt):
    (biased, _), (exact, _) = finished
    assert SAID in hyperopt("show", biased).out
    assert "bias" not in hyperopt("show", exact).out


def test_tensorboard_says_so(finished):
    (biased, _), (exact, _) = finished
    events, plain = (EventAccumulator(str(of / "tensorboard")).Reload() for of in (biased, exact))
    assert BIAS in events.Tensors("bias/text_summary")[0].tensor_proto.string_val[0].decode()
    assert BIAS.encode() in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert "bias/text_summary" not in plain.Tags()["tensors"]


def test_the_lines_for_machines_say_so(hyperopt, tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    lines = [json.loads(line) for line in hyperopt("run", "good.yaml", *TRUNCATED, "--json").out.splitlines()]
    assert [line["bias"] for line in lines[:-1]] == [BIAS, BIAS]
    assert lines[-1]["result"]["bias"] == BIAS


def test_replicas_carry_the_mark(hyperopt, tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    changes = ["outer.replicas=2", "outer.steps=0"]
    assert hyperopt("run", "good.yaml", *TRUNCATED, *changes, "--out", "there").code == 0
    assert read(tmp_path / "there").result.bias == BIAS
