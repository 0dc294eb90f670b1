"""Differences count only where nothing is decided between their ends, and show little errors in any precision."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from hyperopt_cli import Forward, Problem, Reverse, hypergradient
from hyperopt_cli.checks.decisions import SIDES, Decisions
from hyperopt_cli.checks.differences import differenced
from hyperopt_cli.checks.judge import BY_PROGRAM, CANDIDATES, DOUBLE_BACKWARD
from hyperopt_cli.checks.truth import LOW, RIGHT, Truth
from hyperopt_cli.dynamics.derivatives import by_double_backward
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.program.raised import Raised, raised

F64 = torch.float64
X = torch.linspace(-2, 2, 7, dtype=F64)
V = torch.tensor([0.3, -0.5, 0.2, 0.4, -0.1, 0.6, -0.3], dtype=F64)


@pytest.mark.parametrize("name", sorted(SIDES))
def test_an_operator_with_a_kink_says_which_side_each_element_lies_on(name: str) -> None:
    operator = {
        "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "abs": torch.abs, "sgn": torch.sgn,
        "sign": torch.sign,
        "celu": F.celu, "hardtanh": lambda x: F.hardtanh(x, 0.0, 1.0), "clamp": lambda x: x.clamp(0, 1),
        "clamp_min": lambda x: x.clamp_min(0),
        "clamp_max": lambda x: x.clamp_max(0), "threshold": lambda x: F.threshold(x, 0.0, 0.0),
        "hardsigmoid": lambda x: F.hardsigmoid(x + 3), "hardswish": lambda x: F.hardswish(x + 3),
        "softshrink": lambda x: F.softshrink(x + 0.5), "hardshrink": lambda x: F.hardshrink(x + 0.5),
        "maximum": lambda x: torch.maximum(x, 0 * x), "minimum": lambda x: torch.minimum(x, 0 * x),
        "fmax": lambda x: torch.fmax(x, 0 * x), "fmin": lambda x: torch.fmin(x, 0 * x),
        "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, 0 * x), "huber_loss": lambda x: F.huber_loss(x, 0 * x),
        "amax": lambda x: torch.stack([x, 0 * x]).amax(0), "amin": lambda x: torch.stack([x, 0 * x]).amin(0),
        "max": lambda x: torch.stack([x[:1], 0 * x[:1]]).max(), "min": lambda x: torch.stack([x[:1], 0 * x[:1]]).min(),
        "heaviside": lambda x: torch.heaviside(x, torch.ones_like(x)),
        "_prelu_kernel": lambda x: F.prelu(x, torch.full((1,), 0.2, dtype=F64)),
        "threshold_backward": lambda x: torch.ops.aten.threshold_backward(torch.ones_like(x), x, 0),
    }[name]  # fmt: skip
    with Decisions() as at_one:
        operator(torch.full((3,), 1e-6, dtype=F64))
    with Decisions(at_one) as same:
        operator(torch.full((3,), 2e-6, dtype=F64))
    with Decisions(at_one) as other:
        operator(torch.full((3,), -1e-6, dtype=F64))
    assert same.same
    assert not other.same


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [(x * torch.argmax(x)).sum()],
        lambda x: [torch.sort(x + 0.3 * x.flip(0)).values[:2]],
        lambda x: [F.max_pool1d((x * x.flip(0)).view(1, 1, 7), 2)],
        lambda x: [torch.where(x > 0.1, x, 2 * x)],
        lambda x: [x.topk(3).values],
        lambda x: [(x * 3).round() + x],
    ],
)
def test_smooth_where_nothing_is_decided_between_the_ends(function: Any) -> None:
    found = differenced(function, [X + 0.05], [V])
    assert found is not None
    h = 1e-7
    want = [(a - b) / (2 * h) for a, b in zip(function(X + 0.05 + h * V), function(X + 0.05 - h * V), strict=True)]
    for got, expected in zip(found.value, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [F.relu(x).sum()],
        lambda x: [x.abs().sum()],
        lambda x: [torch.where(x > 0, x, -x).sum()],
        lambda x: [(1e12 * x).sin()],
    ],
)
def test_at_a_kink_and_in_noise_they_do_not_count(function: Any) -> None:
    assert differenced(function, [torch.zeros(7, dtype=F64)], [V]) is None


def test_a_derivative_of_nothing_counts_as_zero() -> None:
    found = differenced(lambda x: [x.detach() * 0 + 3.0], [X], [V])
    assert found is not None
    assert found.size < 1e-9


def low_loss(w: Any, h: Any) -> Tensor:
    data = torch.linspace(-1, 1, 12).view(3, 4)
    mask = torch.zeros(3, 5)
    mask[0] = 1.0
    return (torch.tanh(data @ w["w"]) * (1 + mask)).float().square().mean() + w["w"].norm()


def test_float32_is_computed_in_float64() -> None:
    w = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with Raised():
        value = low_loss({"w": w.double()}, {})
    data = torch.linspace(-1, 1, 12).view(3, 4).double()
    mask = torch.zeros(3, 5, dtype=F64)
    mask[0] = 1.0
    want = (torch.tanh(data @ w.double()) * (1 + mask)).square().mean() + w.double().norm()
    assert value.dtype == F64
    torch.testing.assert_close(value, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "dense"])
def test_an_engine_is_right_to_the_last_digits_below_float64_too(engine: str, autocast: bool) -> None:
    def loss(w: Any, h: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return low_loss(w, h)

    params = {"w": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))}
    truth = Truth.at(loss, params, {}, seed=1)
    assert truth.judges
    products, _ = truth.pushed(ENGINES[engine], 2)
    assert truth.error_of_push(products) == 0.0


@pytest.mark.parametrize("off", [1e-4, 1e-5])
def test_a_product_that_is_off_by_a_ten_thousandth_is_seen_in_float32(off: float) -> None:
    truth = Truth.at(low_loss, {"w": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))}, {}, seed=1)
    products, _ = truth.pushed(ENGINES["reverse_over_reverse_loop"], 2)
    assert truth.error_of_push([[(1 + off) * x for x in product] for product in products]) > RIGHT


def test_only_what_takes_no_float64_may_be_off_by_more() -> None:
    def low_alone(w: Any, h: Any) -> Tensor:
        if w["w"].dtype != torch.float32:
            raise TypeError("a kernel of one's own, for float32 alone")
        return w["w"].square().sum()

    params = {"w": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))}
    assert Truth.at(low_loss, params, {}, seed=1).near == RIGHT
    assert Truth.at(low_alone, params, {}, seed=1).near == LOW
    with pytest.raises(TypeError, match="for float32 alone"):  # what training itself refuses is no matter of precision
        Truth.at(low_alone, {"w": params["w"].double()}, {}, seed=1)


def test_zeros_without_memory_are_zeros_in_float64_too() -> None:
    """Tangents of a constant: below a mode of the dispatcher torch reads them as if they had memory, and dies."""
    zeros = torch._efficientzerotensor((2, 4), dtype=F64)  # type: ignore[attr-defined]
    with Raised():
        assert not torch.ops.aten.mul.Scalar(zeros, 2).any()


def off_below_float64(right: Any) -> Any:
    """An engine or a candidate whose products are twice as large, in float32 alone."""

    def wrong(loss: Any, w: Any, h: Any, *more: Any) -> Any:
        out = right(loss, w, h, *more)
        if all(x.dtype == F64 for x in w.values()):
            return out
        if more:
            return out._replace(grad_tangents={name: 2 * x for name, x in out.grad_tangents.items()})
        value, g, pull = out
        return value, g, lambda u: tree_map(lambda x: 2 * x, pull(u))

    return wrong


def test_what_is_right_in_float64_alone_is_not_taken_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    start = {"w": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))}
    inner = lambda p, h, batch: low_loss(p, h)  # noqa: E731
    problem = Problem(start, inner, lambda p, h: p["w"].square().sum(), lambda t: None, SGD(), 4)
    hyper = {"lr": torch.tensor(0.1, dtype=F64)}
    want = hypergradient(problem, hyper, Reverse()).grad["lr"]
    monkeypatch.setitem(CANDIDATES, DOUBLE_BACKWARD, off_below_float64(by_double_backward))
    monkeypatch.setitem(ENGINES, "folded", off_below_float64(ENGINES["folded"]))
    backward, forward = hypergradient(problem, hyper, Reverse()), hypergradient(problem, hyper, Forward())
    assert BY_PROGRAM in backward.stats["checks"]
    assert forward.stats["engine"] != "folded"
    for found in (backward, forward):
        torch.testing.assert_close(found.grad["lr"], want, rtol=1e-5, atol=0)
    with pytest.raises(UsageError, match="engine folded: right in float64, and not in the precision of the run"):
        hypergradient(problem, hyper, Forward(engine="folded"))


def test_raised_leaves_integers_alone() -> None:
    tree = raised({"a": torch.ones(2), "i": torch.arange(2)})
    assert (tree["a"].dtype, tree["i"].dtype) == (F64, torch.int64)


def half_detached(p: Any, h: Any) -> Tensor:
    out: Tensor = (p["w"] ** 2).sum() / 2 + (h["wd"] + h["wd"].detach()) / 4 * (p["w"] ** 2).sum()
    return out


def by_item(p: Any, h: Any) -> Tensor:
    out: Tensor = (p["w"] ** 2).sum() / 2 + (h["wd"] + h["wd"].item()) / 4 * (p["w"] ** 2).sum()
    return out


def beside_a_large_one(p: Any, h: Any) -> Tensor:
    out: Tensor = half_detached(p, h) + h["big"] * (p["w"] ** 3).sum()
    return out


@pytest.mark.parametrize("wd", [1e-2, 1e-7, 1e-9])
@pytest.mark.parametrize("loss", [half_detached, by_item, beside_a_large_one])
def test_a_derivative_in_a_tiny_hyperparameter_does_not_hide(loss: Any, wd: float) -> None:
    hyper = {name: torch.tensor(x, dtype=F64) for name, x in {"wd": wd, "big": 100.0}.items()}
    start = {"w": torch.linspace(-1, 1, 6, dtype=F64)}
    truth = Truth.at(loss, start, hyper, 0)
    assert truth.judges
    alongs, _ = truth.pulled(by_double_backward)
    assert truth.error_of_pull(alongs) > 0.1
    products, _ = truth.pushed(ENGINES["reverse_over_reverse_loop"], 2)
    assert truth.error_of_push(products) > 0.1
