"""What the list of operators keeps for its derivative: no more than a double backward does."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from hyperopt_cli.checks.judge import by_program
from hyperopt_cli.dynamics.derivatives import by_double_backward

AT_MOST = 1.1


class Block(nn.Module):
    """One layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.one, self.other = nn.LayerNorm(32), nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return (x + self.mlp(self.other(x))).mean(1)


def convolutional(norm: nn.Module, activation: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), norm, activation, nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "rectifiers": lambda: (nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 16)), (64, 32)),
    "GELU and LayerNorm": lambda: (
        nn.Sequential(nn.Linear(32, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 16)),
        (64, 32),
    ),
    "SiLU and GroupNorm": lambda: (convolutional(nn.GroupNorm(4, 16), nn.SiLU()), (16, 3, 12, 12)),
    "mish and BatchNorm": lambda: (
        convolutional(nn.BatchNorm2d(16, track_running_stats=False), nn.Mish()),
        (16, 3, 12, 12),
    ),
    "softplus and InstanceNorm": lambda: (convolutional(nn.InstanceNorm2d(16), nn.Softplus()), (16, 3, 12, 12)),
    "a transformer's layer": lambda: (Block(), (16, 8, 32)),
}


def kept_bytes(pull: Callable[..., Any], network: nn.Module, x: Tensor) -> int:
    """What lives on after L, g and the pullback were made."""
    params = {name: p.detach() for name, p in network.named_parameters()}

    def loss(w: Any, h: Any) -> Tensor:
        out: Tensor = functional_call(network, w, (x,))
        return out.square().mean()

    with sdpa_kernel(SDPBackend.MATH):
        pull(loss, params, {"lr": torch.tensor(0.1)})
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
            made = pull(loss, params, {"lr": torch.tensor(0.1)})
            gc.collect()
    del made
    events: Any = taken.profiler
    return sum(event.nbytes() for event in events.kineto_results.events() if event.name() == "[memory]")


# Into what torch decomposes the backward of group norm before 2.13 keeps two tensors more, 1.18 times.
KEEPS_MORE = pytest.mark.xfail(torch.__version__ < (2, 13), reason="before torch 2.13", strict=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=KEEPS_MORE) if "GroupNorm" in name else name for name in NETWORKS]
)
def test_a_program_keeps_no_more_than_a_double_backward(name: str) -> None:
    network, shape = NETWORKS[name]()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert 0 < kept_bytes(by_program, network, x) <= AT_MOST * kept_bytes(by_double_backward, network, x)
