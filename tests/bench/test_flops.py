"""Operations of a step and of its tangents, against closed forms by hand and against a double backward."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from hyperopt_cli.bench.flops import StepFlops, step_flops
from hyperopt_cli.bench.networks import Sizes, networks, ready
from tests.bench.sizes import NETWORKS

CPU = torch.device("cpu")


def counted(name: str, sizes: Sizes) -> StepFlops:
    made = ready(networks(sizes, CPU)[name], 1, None, sizes, CPU)
    return step_flops(made.model, made.batches.at(0))


def test_an_mlp_by_hand() -> None:
    # 6-5-4-10, batch 5: f = 2 B n_in n_out; the first layer's products are two there, and two in a column
    first, others = 2 * 5 * 6 * 5, 2 * 5 * (5 * 4 + 4 * 10)
    flops = counted("mlp", NETWORKS)
    assert flops == StepFlops(2 * first + 3 * others, 2 * first + 6 * others)
    assert flops.of_step(3) == flops.gradient + 3 * flops.column


def test_a_convnet_by_hand() -> None:
    # 3 -> 4 at 8 x 8, 4 -> 4 at 4 x 4 behind a mean, 4 -> 10; kernels 3 x 3, batch 3
    first = 2 * 3 * (8 * 8) * 9 * 3 * 4
    others = 2 * 3 * (4 * 4) * 9 * 4 * 4 + 2 * 3 * 4 * 10
    assert counted("convnet", NETWORKS) == StepFlops(2 * first + 3 * others, 2 * first + 6 * others)


def test_logistic_regression_costs_a_column_what_a_gradient_costs() -> None:
    assert counted("logistic", NETWORKS).column_over_gradient == 1.0


# multiplications of a picture's convolutions behind the input, in their order, by hand
CONVNET = 9 * 16 * 32 * 16**2 + 9 * 32 * 32 * 8**2 + 32 * 10
STAGE1 = 4 * 9 * 16 * 16 * 32**2
STAGE2 = (9 * 16 * 32 + 3 * 9 * 32 * 32 + 16 * 32) * 16**2
STAGE3 = (9 * 32 * 64 + 3 * 9 * 64 * 64 + 32 * 64) * 8**2
ON_PICTURES = 9 * 3 * 16 * 32**2


@pytest.mark.parametrize(
    ("name", "first", "others"),
    [
        ("mlp", 784 * 300, 300 * 300 + 300 * 10),
        ("convnet", ON_PICTURES, CONVNET),
        ("wide_resnet", ON_PICTURES, STAGE1 + STAGE2 + STAGE3 + 64 * 10),
    ],
)
def test_the_floors_of_the_networks_that_are_measured(name: str, first: int, others: int) -> None:
    floor = (2 * first + 6 * others) / (2 * first + 3 * others)
    assert counted(name, Sizes(batch=2, image_batch=2)).column_over_gradient == pytest.approx(floor, rel=1e-12)


class Attention(nn.Module):
    """[B, 3, 4] -> [B, 2]: products of two activations, which no parameter takes part in."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.into(x).chunk(3, dim=-1)
        mixed: torch.Tensor = self.out(((q @ k.mT).softmax(-1) @ v).mean(1))
        return mixed


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Attention, (5,)), (partial(nn.Sequential, nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (5, 3))],
)
def test_a_double_backward_takes_as_many_operations_as_a_column(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, batch = make(), (torch.randn(5, 3, 4), torch.zeros(shape, dtype=torch.int64))
    flops = step_flops(model, batch)
    w = list(model.parameters())
    value = cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())
    g = torch.autograd.grad(value, w, create_graph=True)
    with FlopCounterMode(display=False) as column:
        torch.autograd.grad(g, w, [torch.ones_like(d) for d in g], materialize_grads=True)
    assert column.get_total_flops() == flops.column
