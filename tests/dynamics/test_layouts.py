"""How tensors lie in memory: states that are packed, and operators on K columns where channels come last."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from hyperopt_cli.dynamics.derivatives import gradient_and_pullback
from hyperopt_cli.dynamics.dynamics import Layout
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers import SGD, Adam

F64 = torch.float64
LAST = torch.channels_last
PARAMETERS: dict[str, Callable[[str], dict[str, Tensor]]] = {
    "matrices": lambda d: {"a": torch.ones(3, 4, device=d), "b": torch.ones(4, device=d)},
    "transposed": lambda d: {"a": torch.ones(3, 4, device=d).t(), "b": torch.ones(2, 3, 4, device=d).permute(2, 0, 1)},
    "channels last": lambda d: {"a": torch.ones(4, 3, 2, 2, device=d).to(memory_format=LAST)},
    "three dimensions, channels last": lambda d: {
        "a": torch.ones(4, 3, 2, 2, 2, device=d).to(memory_format=torch.channels_last_3d)
    },
    "numbers": lambda d: {"a": torch.ones((), device=d), "b": torch.ones(1, device=d), "c": torch.ones(1, 1, device=d)},
    "empty": lambda d: {"a": torch.ones(0, 3, device=d), "b": torch.ones(2, device=d)},
    "spread out": lambda d: {"a": torch.ones(8, device=d)[::2], "b": torch.ones(1, device=d).expand(5)},
}


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_packed_parameters_lie_end_to_end_and_are_unpacked_as_views(kind: str, device: str) -> None:
    params = PARAMETERS[kind](device)
    layout = Layout.of(params, SGD(), {})
    held = layout.pack(params)
    assert list(held) == [""]
    assert held[""].shape == (sum(x.numel() for x in params.values()),)
    assert held[""].is_contiguous()
    views = layout.unpack(held)
    begin = 0
    for name, x in params.items():
        assert views[name].shape == x.shape
        assert views[name].untyped_storage()._cdata == held[""].untyped_storage()._cdata
        assert views[name].storage_offset() == begin
        begin += x.numel()


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("batch", [(1,), (3,), (3, 2)])
def test_tangents_are_packed_alike(kind: str, batch: tuple[int, ...]) -> None:
    params = PARAMETERS[kind]("meta")
    layout = Layout.of(params, SGD(), {})
    tangents = {name: x.expand(*batch, *x.shape) for name, x in params.items()}
    held = layout.pack(tangents, len(batch))
    assert held[""].shape == (*batch, sum(x.numel() for x in params.values()))
    views = layout.unpack(held, len(batch))
    assert {name: x.shape for name, x in views.items()} == {name: x.shape for name, x in tangents.items()}
    assert all(x.untyped_storage()._cdata == held[""].untyped_storage()._cdata for x in views.values())


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_number_comes_back_to_where_it_was(kind: str) -> None:
    params = {name: torch.rand_like(x) for name, x in PARAMETERS[kind]("cpu").items()}
    layout = Layout.of(params, SGD(), {})
    back = layout.unpack(layout.pack(params))
    assert all(torch.equal(back[name], x) for name, x in params.items())


@pytest.mark.parametrize(
    "params",
    [
        {"a": torch.ones(2, device="meta"), "b": torch.ones(2, dtype=F64, device="meta")},
        {"a": torch.ones(2, device="meta"), "b": torch.ones(2)},
        {"a": torch.ones(2, device="meta"), "b": torch.ones(2, dtype=torch.bfloat16, device="meta")},
    ],
)
def test_parameters_of_several_dtypes_or_devices_stay_apart(params: dict[str, Tensor]) -> None:
    layout = Layout.of(params, Adam(), {})
    assert not layout.packed
    assert layout.unpack(layout.pack(params)) is params


class Attending(nn.Module):
    """Attention over the pixels of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        out: Tensor = self.attention(rows, rows, rows, need_weights=False)[0]
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "convolution of every other pixel": lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
    "in groups": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
    "of one pixel": lambda: nn.Conv2d(4, 6, 1),
    "two": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.SiLU()),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()),
    "means": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 3)),
    "maxima": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)),
    "attention": Attending,
}


# which torch's own derivatives do not take before 2.14: the CPU's kernel asks how the numbers lie
OLD = torch.__version__ < (2, 14)
NOT_YET = {("group norm", "forward_over_reverse", "cpu"), ("maxima", "reverse_over_reverse", "cpu")} if OLD else set()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("engine", ["folded", "forward_over_reverse", "reverse_over_reverse"])
@pytest.mark.parametrize("model", MODELS)
def test_pictures_with_channels_last_have_the_products_of_others(model: str, engine: str, device: str) -> None:
    """On the CPU the numbers are compared, on a device whose results have channels last the shapes."""
    torch.manual_seed(0)
    module = MODELS[model]().to(device, F64)
    x = torch.randn(3, 4, 8, 8, dtype=F64, device=device)
    params = {name: w.detach() for name, w in module.named_parameters()}
    dots = {name: torch.randn(2, *w.shape, dtype=F64, device=device) for name, w in params.items()}

    def products(x: Tensor, params: dict[str, Tensor]) -> list[Tensor]:
        def loss(params: Any, hyper: Any) -> Tensor:
            out: Tensor = functional_call(module, params, (x,))
            return (torch.tanh(out) * hyper["scale"]).square().mean()

        hyper = {"scale": torch.ones((), dtype=F64, device=device)}
        hyper_dot = {"scale": torch.ones(2, dtype=F64, device=device)}
        out = ENGINES[engine](loss, params, hyper, dots, hyper_dot)
        pulled = gradient_and_pullback(loss, params, hyper)[2]({name: d[0] for name, d in dots.items()})
        return tree_leaves((out, pulled))

    def last(x: Tensor) -> Tensor:
        return x.to(memory_format=LAST) if x.ndim == 4 else x

    if (model, engine, device) in NOT_YET:
        with surroundings(), pytest.raises((RuntimeError, UsageError), match=r"view size|memory_format"):
            products(last(x), {name: last(w) for name, w in params.items()})
        return
    with surroundings():
        want = products(x, params)
        got = products(last(x), {name: last(w) for name, w in params.items()})
    assert [y.shape for y in got] == [y.shape for y in want]
    if device == "cpu":
        assert all(torch.allclose(y, z, rtol=1e-9, atol=1e-12) for y, z in zip(got, want, strict=True))
