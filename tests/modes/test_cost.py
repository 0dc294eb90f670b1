"""What the modes count and hold: columns that are carried, gradients, and peak memory over the horizon."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from hyperopt_cli import Forward, hypergradient
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.problem import Hyper
from tests.cases import T, net_problem, scaled_init, windows

RATES = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)
HALF = torch.tensor(0.5, dtype=torch.float64)


def count(
    hyper: Hyper, mode: str | Forward = "forward", init: Callable[[Hyper], Hyper] | None = None
) -> dict[str, int]:
    stats = hypergradient(net_problem(SGD(), windows, init), hyper, mode).stats
    return {name: stats[name] for name in ("num_steps", "num_gradients", "num_hvps")}


def test_a_column_is_carried_from_the_step_at_which_its_window_begins() -> None:
    thirds = T // 3
    assert count({"lr": RATES})["num_hvps"] == thirds * (1 + 2 + 3) < 3 * T


def test_a_column_that_every_step_reads_is_carried_throughout() -> None:
    assert count({"lr": RATES, "momentum": HALF})["num_hvps"] == T // 3 * (1 + 2 + 3) + T


def test_a_column_that_only_init_reads_is_carried_throughout() -> None:
    assert count({"lr": RATES, "init_scale": HALF}, init=scaled_init)["num_hvps"] == T // 3 * (1 + 2 + 3) + T


@pytest.mark.parametrize("mode", [Forward(columns_at_once=1), Forward(engine="reverse_over_reverse_loop")])
def test_the_count_is_of_columns_whatever_the_engine(mode: Forward) -> None:
    assert count({"lr": RATES}, mode) == count({"lr": RATES})


def test_forward_takes_one_gradient_a_step() -> None:
    counted = count({"lr": RATES})
    assert (counted["num_steps"], counted["num_gradients"]) == (T, T)


def test_reverse_takes_two_gradients_and_one_product_a_step_whatever_the_number_of_columns() -> None:
    want = {"num_steps": T, "num_gradients": 2 * T, "num_hvps": T}
    assert count({"lr": RATES}, "reverse") == count({"lr": RATES, "momentum": HALF}, "reverse") == want


PEAKS = """
import sys
import torch
from hyperopt_cli import Forward, Problem, Reverse, hypergradient
from hyperopt_cli.optimizers import SGD

torch.set_num_threads(1)
# set by hand: what auto measures where the horizon repays it, it measures once
modes = {"forward": Forward(engine="folded", compile=False), "reverse": Reverse(compile=False)}
mode, horizons = modes[sys.argv[1]], [int(t) for t in sys.argv[2:]]
w, hyper = {"w": torch.ones(50_000)}, {"lr": torch.tensor(0.01)}
value = lambda params, *rest: (params["w"] ** 2).sum() / 2
for steps in horizons:
    problem = Problem(w, value, value, lambda t: None, SGD(), steps)
    print(hypergradient(problem, hyper, mode).stats["peak_bytes"])
"""


def peaks(mode: str, *horizons: int) -> list[int]:
    """In a process of its own; the first of the horizons only warms it up."""
    command = [sys.executable, "-c", PEAKS, mode, *map(str, (20, *horizons))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()][1:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a call is measured on Linux")
@pytest.mark.slow
def test_the_peak_memory_of_forward_does_not_grow_with_the_horizon() -> None:
    short, long = peaks("forward", 100, 5000)
    assert long < 1.02 * short


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a call is measured on Linux")
def test_the_check_of_the_peak_bites_on_reverse_which_keeps_every_state() -> None:
    short, long = peaks("reverse", 100, 1000)
    assert long > 1.02 * short
    assert long - short > 0.9 * 900 * 200_000
