"""A sample of `make survey`, and that a false refusal is found."""

import random

import pytest
import torch

from hyperopt_cli.errors import UsageError
from tests.fuzz import survey
from tests.fuzz.ordinary import ROWS

LIBRARIES = ("torchvision", "transformers")  # too long here
SAMPLE = random.Random(3).sample([name for name in ROWS if not name.startswith(LIBRARIES)], 8)


def test_there_are_three_hundred_rows():
    assert len(ROWS) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_no_ordinary_model_is_refused(name):
    line = survey.surveyed(name, 120)
    assert line["verdict"] in ("right", "not judged"), line


def test_a_false_refusal_is_found(monkeypatch):
    def refuse(*_):
        raise UsageError("no")

    monkeypatch.setattr(survey, "hypergradient", refuse)
    line = survey.surveyed("nn.Tanh", 120)
    assert (line["verdict"], line["candidates"]) == ("FALSE REFUSAL", "unroll")


def test_a_wrong_answer_is_found(monkeypatch):
    real = survey.hypergradient

    def off(*arguments):
        out = real(*arguments)
        return out._replace(grad={k: 1.05 * x for k, x in out.grad.items()})

    monkeypatch.setattr(survey, "hypergradient", off)
    assert survey.surveyed("nn.Tanh", 120)["verdict"] == "WRONG"


@pytest.mark.parametrize(("name", "dtype"), [("nn.Dropout", torch.float64), ("nn.Tanh", torch.float32)])
def test_what_draws_runs_in_float64(name, dtype):
    assert survey.Trained(name).dtype == dtype
