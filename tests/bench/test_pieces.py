"""The pieces of a hypergradient, and what fixed point holds."""

import time

import pytest
import torch

from hyperopt_cli.bench import pieces
from hyperopt_cli.bench.pieces import Stopwatch, held_at_end, reverse_pieces, reversible_pieces
from hyperopt_cli.bench.problems import Workload, noisy_quadratic
from hyperopt_cli.modes import Reversible, hypergradient
from hyperopt_cli.modes.reversal.kernels import EAGER
from hyperopt_cli.modes.reversal.radix import Radixes
from hyperopt_cli.optimizers import SGD, Adam

CPU = torch.device("cpu")
SIZE = 50


def heavy_ball(steps: int, momentum: float = 0.9) -> Workload:
    return noisy_quadratic(SIZE, steps, SGD(), {"lr": 0.05, "momentum": momentum}, CPU)


def radixes(workload: Workload) -> Radixes:
    found: Radixes = hypergradient(*workload, Reversible(compile=False)).stats["radix"]
    return found


def test_a_lap_is_summed_within_a_step_and_the_median_taken_over_steps() -> None:
    stopwatch = Stopwatch(CPU)
    for t, seconds in enumerate((0.01, 0.01, 0.3)):
        for _ in range(2):
            with stopwatch.around("a", t):
                time.sleep(seconds / 2)
    assert 0.03 <= stopwatch.whole_s(3)["a"] < 0.3


def test_reverse_mode_goes_into_training_and_the_adjoint() -> None:
    whole = reverse_pieces(heavy_ball(4), CPU)
    assert set(whole) == {pieces.TRAINING, pieces.ADJOINT}
    assert min(whole.values()) > 0


def test_reversible_mode_goes_into_arithmetic_too() -> None:
    workload = heavy_ball(4)
    whole = reversible_pieces(workload, CPU, EAGER, radixes(workload))
    assert list(whole) == [pieces.TRAINING, pieces.THERE, pieces.BACK, pieces.ADJOINT]
    assert min(whole.values()) > 0


def test_w_the_momentum_and_the_store_are_24_bytes_a_parameter_and_a_word_is_4() -> None:
    workload = heavy_ball(3)
    assert held_at_end(workload, radixes(workload)) == 24 * SIZE
    # log2(10/9) = .152 bits a step: in 400 steps 60.8 bits, of which 32 are spilled once 63 could be outgrown
    workload = heavy_ball(400)
    assert held_at_end(workload, radixes(workload)) == (24 + 4) * SIZE


def test_adam_holds_two_moments_each_with_a_byte_for_the_binary_point() -> None:
    workload = noisy_quadratic(SIZE, 3, Adam(), {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999}, CPU)
    assert held_at_end(workload, radixes(workload)) == (32 + 2) * SIZE


def test_a_number_out_of_its_range_is_no_figure() -> None:
    workload = heavy_ball(3)
    with pytest.raises(AssertionError, match="fixed-point range"):
        held_at_end(workload, {"w": {"": 62}, "momentum_buffer": {"": 62}})
