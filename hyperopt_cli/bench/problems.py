"""The training runs that are measured: random data from a fixed seed, the same everywhere."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from hyperopt_cli.optimizers.base import InnerOptimizer
from hyperopt_cli.problem import Hyper, Params, Problem

NUM_BATCHES = 20  # distinct ones, in turn
NUM_CLASSES = 10


class Workload(NamedTuple):
    """A problem, and lambda."""

    problem: Problem
    hyper: Hyper


def scalars(values: Mapping[str, float]) -> Hyper:
    """Float64, on the host."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def classification(
    make_model: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
    batch: int,
    steps: int,
    optimizer: InnerOptimizer,
    hyper: Mapping[str, float],
    device: torch.device,
) -> Workload:
    """Cross entropy in float32, on inputs and targets at random; validated on one more batch.

    Args:
        make_model: of `input_shape` and `num_classes`.
        input_shape: of one input.
        batch: inputs in a batch.
        steps: T.
        optimizer: the update rule.
        hyper: lambda, numbers.
        device: where to compute.
    """
    drawn = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_BATCHES + 1, batch, *input_shape, generator=drawn).to(device)
    targets = torch.randint(NUM_CLASSES, (NUM_BATCHES + 1, batch), generator=drawn).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model(input_shape=input_shape, num_classes=NUM_CLASSES).to(device)
    start = {name: w.detach() for name, w in model.named_parameters()}

    def loss(params: Params, i: int) -> Tensor:
        return cross_entropy(functional_call(model, params, (inputs[i],)), targets[i])

    problem = Problem(
        init=start,
        inner_loss=lambda params, hyper, i: loss(params, i),
        outer_loss=lambda params, hyper: loss(params, NUM_BATCHES),
        batch=lambda t: t % NUM_BATCHES,
        optimizer=optimizer,
        steps=steps,
    )
    return Workload(problem, scalars(hyper))


def noisy_quadratic(
    size: int, steps: int, optimizer: InnerOptimizer, hyper: Mapping[str, float], device: torch.device
) -> Workload:
    """sum(h x^2) / 2 + noise_t . x over x [size], h in [.1, 1], x_0 in [-1, 1], in float32: no network to wait for."""
    drawn = torch.Generator().manual_seed(0)
    h = (0.1 + 0.9 * torch.rand(size, generator=drawn)).to(device)
    x0 = (2 * torch.rand(size, generator=drawn) - 1).to(device)

    def noise(t: int) -> Tensor:
        return 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(t + 1)).to(device)

    problem = Problem(
        init={"x": x0},
        inner_loss=lambda params, hyper, noise: (params["x"] * (h * params["x"] / 2 + noise)).sum(),
        outer_loss=lambda params, hyper: (h * params["x"] ** 2).sum() / 2,
        batch=noise,
        optimizer=optimizer,
        steps=steps,
    )
    return Workload(problem, scalars(hyper))
