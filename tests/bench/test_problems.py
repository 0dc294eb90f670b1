"""The training runs that are measured."""

from functools import partial

import pytest
import torch

from hyperopt_cli.bench.problems import NUM_BATCHES, classification, noisy_quadratic
from hyperopt_cli.models import mlp
from hyperopt_cli.modes import hypergradient
from hyperopt_cli.optimizers import SGD

CPU = torch.device("cpu")
HYPER = {"lr": 0.1, "momentum": 0.5}


def network(steps=3):
    return classification(partial(mlp, hidden=(5,)), (7,), 4, steps, SGD(), HYPER, CPU)


@pytest.mark.parametrize("make", [network, lambda: noisy_quadratic(6, 3, SGD(), HYPER, CPU)])
def test_a_workload_is_the_same_each_time_it_is_made_and_leaves_the_global_generator_alone(make):
    before = torch.random.get_rng_state()
    one, two = (hypergradient(*make(), "reverse") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.value, two.value)
    assert all(torch.equal(x, two.grad[name]) for name, x in one.grad.items())


def test_batches_come_in_turn_and_the_objective_has_one_of_its_own():
    problem, hyper = network()
    params = problem.initial(hyper)
    losses = [problem.training_loss(params, {}, problem.batch(t)).item() for t in range(NUM_BATCHES + 1)]
    assert losses[0] == losses[NUM_BATCHES]
    assert problem.validation_loss(params, hyper).item() not in losses


def test_the_gradient_of_the_quadratic_is_h_x_plus_noise():
    problem, _ = noisy_quadratic(6, 3, SGD(), HYPER, CPU)
    x = torch.zeros(6, requires_grad=True)
    (at_zero,) = torch.autograd.grad(problem.training_loss({"x": x}, {}, problem.batch(1)), x)
    torch.testing.assert_close(at_zero, problem.batch(1))
    assert not torch.equal(problem.batch(1), problem.batch(2))
