"""The recipes that ship do what their headers say."""

import os
from pathlib import Path

import pytest

from hyperopt_cli.run_directory.reading import read

DATA = os.environ.get("HYPEROPT_DATA", "")


def run(hyperopt, *arguments):
    done = hyperopt("run", *arguments, "--out", "there")
    assert done.code == 0, done.err
    return read(Path("there"))


def test_the_hypergradient_of_the_quadratic_is_the_one_known_by_hand(hyperopt):
    start = run(hyperopt, "quadratic", "outer.steps=0").metrics[0]
    assert start.validation_loss == pytest.approx(0.8**40, rel=1e-12)
    assert start.hypergradient["lr"] == pytest.approx(-20 * 4 * 0.8**39, rel=1e-12)


def test_the_quadratic_walks_to_where_nothing_is_left(hyperopt):
    best = run(hyperopt, "quadratic", "outer.steps=4").result.best
    assert best.hyperparameters["lr"] == pytest.approx(0.5, abs=0.1)
    assert best.validation_loss < 1e-30


@pytest.mark.slow
def test_digits_lr_lowers_the_validation_loss_by_more_than_half(hyperopt):
    result = run(hyperopt, "digits_lr").result
    assert result.best.validation_loss < result.initial.validation_loss / 2
    assert result.test.best.accuracy > 0.9 > result.test.initial.accuracy


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="HYPEROPT_DATA does not name a folder with MNIST/raw")
def test_mnist_lr_lowers_the_validation_loss_by_more_than_half(hyperopt):
    result = run(hyperopt, "mnist_lr", f"dataset.root={DATA}").result
    assert result.best.validation_loss < result.initial.validation_loss / 2


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="HYPEROPT_DATA does not name a folder with cifar10/train/<class>/*.jpg")
def test_cifar_lr_cpu_starts(hyperopt):
    options = [f"dataset.root={DATA}/cifar10", "steps=5", "outer.steps=1"]
    assert len(run(hyperopt, "cifar_lr_cpu", *options).metrics) == 2
