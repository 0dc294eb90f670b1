"""The training runs that are measured: on random data from a fixed seed, the same everywhere, or on MNIST.

A batch is a pair of tensors, so that a compiled step can take it as an argument.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from hyperopt_cli.data import InMemory, mnist
from hyperopt_cli.optimizers.base import InnerOptimizer
from hyperopt_cli.problem import Batch, Hyper, Params, Problem, StepHyper

NUM_BATCHES = 20  # distinct ones, in turn
NUM_CLASSES = 10

Schedule = Callable[[Hyper, int], StepHyper]


class Workload(NamedTuple):
    """A problem, and the lambda at which it is differentiated."""

    problem: Problem
    hyper: Hyper


class Batches(NamedTuple):
    """Inputs [N + 1, B, ...] and targets [N + 1, B, ...]: N batches to train on in turn, and one to validate on."""

    inputs: Tensor
    targets: Tensor

    def at(self, i: int) -> Batch:
        """Returns batch i; -1 is the one to validate on."""
        return self.inputs[i], self.targets[i]


def scalars(values: Mapping[str, float]) -> Hyper:
    """Returns each value as a float64 scalar [] on the host."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def drawn(input_shape: tuple[int, ...], batch: int, device: torch.device, num: int = NUM_BATCHES) -> Batches:
    """Draws float32 inputs from a normal distribution and targets of `NUM_CLASSES` classes, from a fixed seed.

    Args:
        input_shape: the shape of one input.
        batch: inputs in a batch.
        device: where the batches lie.
        num: batches to train on; one more is drawn to validate on.
    """
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(num + 1, batch, *input_shape, generator=source).to(device)
    targets = torch.randint(NUM_CLASSES, (num + 1, batch), generator=source).to(device)
    return Batches(inputs, targets)


def mnist_batches(root: Path, batch: int, device: torch.device, num: int) -> Batches:
    """Returns training examples of MNIST in a random order, flattened to float32 in 0 ... 1.

    No example comes twice before all have come once.

    Args:
        root: the folder that holds `MNIST/raw`.
        batch: inputs in a batch.
        device: where the batches lie.
        num: batches to train on; one more is made to validate on.

    Raises:
        DatasetError: `root` has no `MNIST/raw`, or files of it are damaged.
    """
    examples = mnist(str(root)).train
    assert isinstance(examples, InMemory)
    order = torch.randperm(len(examples.targets), generator=torch.Generator().manual_seed(0))
    index = order[torch.arange((num + 1) * batch) % len(order)]
    inputs = examples.inputs[index].float().div(255).view(num + 1, batch, -1)
    return Batches(inputs.to(device), examples.targets[index].view(num + 1, batch).to(device))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Makes the module in torch's initialisation from a fixed seed, and leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def start_and_loss(model: nn.Module) -> tuple[Params, Callable[[Params, Batch], Tensor]]:
    """Returns w_0, and a function `(w, batch)` that is the mean cross entropy.

    Logits [B, ..., classes] are compared with targets [B, ...].
    """

    def loss(params: Params, batch: Batch) -> Tensor:
        inputs, targets = batch
        return cross_entropy(functional_call(model, params, (inputs,)).flatten(0, -2), targets.flatten())

    return {name: w.detach() for name, w in model.named_parameters()}, loss


def supervised(
    model: nn.Module,
    batches: Batches,
    steps: int,
    optimizer: InnerOptimizer,
    hyper: Hyper,
    schedule: Schedule | None = None,
) -> Workload:
    """Returns a run that trains by cross entropy on batches that come in turn, and is validated on the last one.

    Args:
        model: the module, from whose parameters training starts.
        batches: the batches to train on, and the one to validate on.
        steps: the horizon T.
        optimizer: the update rule.
        hyper: lambda.
        schedule: lambda and t -> lambda_t; None where lambda itself holds at every step.
    """
    start, loss = start_and_loss(model)
    num, validation = len(batches.inputs) - 1, batches.at(-1)
    problem = Problem(
        init=start,
        inner_loss=lambda params, step_hyper, batch: loss(params, batch),
        outer_loss=lambda params, hyper: loss(params, validation),
        batch=lambda t: batches.at(t % num),
        optimizer=optimizer,
        steps=steps,
        schedule=schedule,
    )
    return Workload(problem, hyper)


def classification(
    make_model: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
    batch: int,
    steps: int,
    optimizer: InnerOptimizer,
    hyper: Mapping[str, float],
    device: torch.device,
) -> Workload:
    """Returns a run that trains by cross entropy on random data in float32, and is validated on one more batch.

    Args:
        make_model: makes the module from `input_shape` and `num_classes`.
        input_shape: the shape of one input.
        batch: inputs in a batch.
        steps: the horizon T.
        optimizer: the update rule.
        hyper: lambda, as plain numbers.
        device: where to compute.
    """
    model = seeded(lambda: make_model(input_shape=input_shape, num_classes=NUM_CLASSES)).to(device)
    return supervised(model, drawn(input_shape, batch, device), steps, optimizer, scalars(hyper))


def windows(num: int, steps: int) -> Schedule:
    """Returns a schedule of lr [num] in which each rate has its share of the run: its column begins with its window."""
    return lambda hyper, t: {**hyper, "lr": hyper["lr"][t * num // steps]}


def blend(num: int, steps: int) -> Schedule:
    """Returns a schedule of lr [num] whose every step takes a weighted mean of all rates: all columns begin at once."""
    drawn = torch.rand(steps, num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = (0.1 + drawn) / (0.1 + drawn).sum(dim=1, keepdim=True)
    return lambda hyper, t: {**hyper, "lr": (weights[t] * hyper["lr"]).sum()}


def noisy_quadratic(
    size: int, steps: int, optimizer: InnerOptimizer, hyper: Mapping[str, float], device: torch.device
) -> Workload:
    """Returns a run on sum(h x^2) / 2 + noise_t . x in float32, in which no time goes into a network.

    The parameter is x [size], with h drawn from [.1, 1], x_0 from [-1, 1] and noise_t from a normal distribution.

    Args:
        size: how many elements x has.
        steps: the horizon T.
        optimizer: the update rule.
        hyper: lambda, as plain numbers.
        device: where to compute.
    """
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
