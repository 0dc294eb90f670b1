"""What is timed of a call, and what is not."""

import time
from dataclasses import replace

import pytest
import torch

from hyperopt_cli.bench.measuring import OwnTime, timed
from hyperopt_cli.bench.problems import noisy_quadratic
from hyperopt_cli.bench.stopwatch import gradients, matrix_products, mean_time, steps_but_the_first
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes import Forward, hypergradient
from hyperopt_cli.optimizers import SGD

CPU = torch.device("cpu")
RUN = noisy_quadratic(5, 3, SGD(), {"lr": 0.1, "momentum": 0.5}, CPU)


def test_a_lap_is_the_mean_without_the_first_call() -> None:
    naps = iter([0.3, 0.01, 0.03])
    assert 0.02 <= mean_time(lambda: time.sleep(next(naps)), 2, CPU).seconds < 0.1


def test_a_part_that_a_call_has_timed_is_what_counts() -> None:
    assert timed(lambda: OwnTime(7.0, "result"), CPU) == (7.0, "result")


def test_the_first_step_is_not_timed_and_the_result_is_the_hypergradient() -> None:
    slow = replace(RUN.problem, batch=lambda t: time.sleep((0.4, 0.02, 0.02)[t]) or RUN.problem.batch(t))
    mode = Forward(engine="reverse_over_reverse_loop")
    hypergradient(*RUN, mode)  # what is loaded once
    took = steps_but_the_first(mode, RUN._replace(problem=slow), CPU)
    assert 0.02 <= took.seconds < 0.2
    expected = hypergradient(*RUN, mode).grad
    assert all(torch.equal(took.result[name], x) for name, x in expected.items())


def test_what_has_no_room_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperopt_cli.bench.stopwatch.available_bytes", lambda device: 2**30)
    with pytest.raises(UsageError, match=r"some 1.0 GiB, and 1.0 GiB are free"):
        steps_but_the_first(Forward(), RUN, CPU, needs_bytes=2**30)


def test_gradients_and_products_take_time() -> None:
    assert gradients(RUN, 2, CPU).seconds > 0
    assert matrix_products(8, torch.float32, 2, CPU)().seconds > 0
