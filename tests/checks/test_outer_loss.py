"""dE/dw is that of E: right where autograd is cut, a surrogate where an estimator is wished for, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient
from hyperopt_cli.errors import NonDeterministicError, UsageError
from hyperopt_cli.modes import Measurements
from hyperopt_cli.optimizers import SGD
from tests.checks.test_cut_gradients import Reversed
from tests.checks.training import F64, HYPER, error, truth

MODES = ("forward", "reverse", "reversible")
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = X[:, 0] - X[:, 1]
START = {
    "w": torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64),
    "v": torch.randn(3, generator=torch.Generator().manual_seed(2), dtype=F64),
}


def fit(p: Any, h: Any, rows: Any) -> Tensor:
    return ((torch.tanh(X[rows] @ p["w"]) @ p["v"] - Y[rows]) ** 2).mean()


def batch(t: int) -> slice:
    return slice(t % 3, None, 3)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def normalised(p: Any, h: Any) -> Tensor:
    z = X @ p["w"]
    with torch.no_grad():
        mean, deviation = z.mean(0), z.std(0)
    return ((torch.tanh((z - mean) / deviation) @ p["v"] - Y) ** 2).mean()


def hooked(p: Any, h: Any) -> Tensor:
    z = torch.tanh(X @ p["w"])
    if z.requires_grad:
        z.register_hook(lambda g: 2 * g)
    return ((z @ p["v"] - Y) ** 2).mean()


def honestly_rounded(p: Any, h: Any) -> Tensor:
    """A rounding that autograd has right excuses no detach elsewhere."""
    with torch.no_grad():
        scale = 1 + p["w"].norm()
    return (p["v"] * (1 + torch.round(3 * p["v"]))).sum() + (p["w"] ** 2).sum() * scale


def off_grid(w: Tensor) -> Tensor:
    return w - (8 * w).round() / 8


def beside_another_cut(p: Any, h: Any) -> Tensor:
    with torch.no_grad():
        scale = 1 + p["w"].norm()
    errors = off_grid(p["w"]).square().sum() + (p["w"] - p["w"].floor()).sum()
    return fit(p, h, slice(None)) * scale + errors.detach() * (p["v"] ** 2).sum()


RIGHT: dict[str, Callable[..., Tensor]] = {
    "plain": lambda p, h: fit(p, h, slice(None)),
    "statistics without gradient": normalised,
    "a detach": lambda p, h: fit({**p, "w": p["w"].detach()}, h, slice(None)),
    "gradient reversal": lambda p, h: fit({**p, "w": Reversed.apply(p["w"])}, h, slice(None)),
    "a hook": hooked,
    "a hyperparameter that is detached": lambda p, h: fit(p, h, slice(None)) + h["lr"].detach() * p["v"].sum() * 3,
    "rectifiers and absolute values": lambda p, h: (torch.relu(X @ p["w"]) @ p["v"] - Y).abs().mean(),
    "an honest rounding beside a detach": honestly_rounded,
    "a detached error of a rounding": lambda p, h: (
        fit(p, h, slice(None)) + 30 * off_grid(p["w"]).square().sum().detach()
    ),
    "a detached error beside another cut": beside_another_cut,
    "an operator without a forward derivative beside a cut": lambda p, h: (
        normalised(p, h) + torch.pdist(X @ p["w"]).mean() * p["v"].detach().norm()
    ),
    "a target of its own": lambda p, h: ((X @ p["w"]) ** 2 - (X @ p["w"]).detach().roll(1)).square().mean(),
}


def problem_of(outer: Callable[..., Tensor]) -> Problem:
    return Problem(START, fit, outer, batch, SGD(), 6)


@pytest.mark.parametrize("name", RIGHT)
def test_the_derivative_is_that_of_the_value(name: str) -> None:
    want = truth(START, fit, RIGHT[name], batch, 6, h=1e-5)
    for mode in MODES:
        got = hypergradient(problem_of(RIGHT[name]), HYPER, mode)
        assert error(got.grad, want) < 1e-5, mode  # of the truth's own error
        assert "surrogate" not in got.stats.get("checks", "")


def bounded(w: Tensor) -> Tensor:
    with torch.no_grad():
        q = torch.clamp((8 * w).round(), -2, 2) / 8
    return w + (q - w.detach())


def chosen(w: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(w.argmax(-1), w.shape[-1]).to(w.dtype)


ESTIMATED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "a Function": (lambda w: Straight.apply(8 * w) / 8, lambda w: (8 * w).round() / 8),
    "a detach": (lambda w: w + ((8 * w).round() / 8 - w).detach(), lambda w: (8 * w).round() / 8),
    "a sign": (lambda w: w + (w.sign() - w).detach(), torch.sign),
    "a clipped sign": (lambda w: w.clamp(-1, 1) + (w.sign() - w.clamp(-1, 1)).detach(), torch.sign),
    "a comparison": (lambda w: w + ((w > 0).to(w.dtype) - w).detach(), lambda w: (w > 0).to(w.dtype)),
    "a bound of what is rounded": (
        lambda w: w + (torch.clamp((8 * w).round(), -2, 2) / 8 - w).detach(),
        lambda w: torch.clamp((8 * w).round(), -2, 2) / 8,
    ),
    "rounding of what is bounded": (
        lambda w: w + (torch.clamp(8 * w, -2, 2).round() / 8 - w).detach(),
        lambda w: torch.clamp(8 * w, -2, 2).round() / 8,
    ),
    "a bound without gradient": (bounded, lambda w: torch.clamp((8 * w).round(), -2, 2) / 8),
    "half of a slope": (lambda w: 0.5 * w + ((8 * w).round() / 8 - 0.5 * w).detach(), lambda w: (8 * w).round() / 8),
    "the slope of tanh": (lambda w: torch.tanh(w) + (w.sign() - torch.tanh(w)).detach(), torch.sign),
    "a choice": (
        lambda w: chosen(w) - w.softmax(-1).detach() + w.softmax(-1),
        lambda w: chosen(w),
    ),
    "a floor": (lambda w: w + (w.floor() - w).detach(), torch.floor),
}


@pytest.mark.parametrize("name", ESTIMATED)
def test_an_estimator_is_taken_and_said_to_be_a_surrogate(name: str) -> None:
    """dE/dlambda is dE/dw of the estimator, times dw_T/dlambda by differences."""
    estimator, _ = ESTIMATED[name]
    outer = lambda p, h: fit({**p, "w": estimator(p["w"])}, h, slice(None))  # noqa: E731
    got = hypergradient(problem_of(outer), HYPER, "reverse")
    leaves = {key: x.clone().requires_grad_() for key, x in got.params.items()}
    by_w = dict(zip(leaves, torch.autograd.grad(outer(leaves, HYPER), list(leaves.values())), strict=True))
    along = lambda p, h: sum((by_w[key] * x).sum() for key, x in p.items())  # noqa: E731
    want = truth(START, fit, along, batch, 6)
    assert error(got.grad, want) < 1e-6
    assert "surrogate" in got.stats["checks"]
    for mode in MODES:
        assert error(hypergradient(problem_of(outer), HYPER, mode).grad, want) < 1e-6, mode


# These show by autograd's derivative alone, and it is cut elsewhere.
HIDDEN = ("a Function",)


@pytest.mark.parametrize("name", ESTIMATED)
def test_an_estimator_beside_a_cut_is_taken_where_it_shows(name: str) -> None:
    """The cut is mended; what rounds has the derivative of the estimator, or none, and that is said."""
    estimator, rounded = ESTIMATED[name]

    def outer(p: Any, h: Any) -> Tensor:
        with torch.no_grad():
            scale = 1 + p["w"].norm()
        return fit({**p, "w": estimator(p["w"])}, h, slice(None)) * scale

    got = hypergradient(problem_of(outer), HYPER, "reverse")
    leaves = {key: x.clone().requires_grad_() for key, x in got.params.items()}
    w = (rounded if name in HIDDEN else estimator)(leaves["w"])
    uncut = fit({**leaves, "w": w}, HYPER, slice(None)) * (1 + leaves["w"].norm())
    by_w = dict(zip(leaves, torch.autograd.grad(uncut, list(leaves.values())), strict=True))
    want = truth(START, fit, lambda p, h: sum((by_w[key] * x).sum() for key, x in p.items()), batch, 6)
    for mode in MODES:
        got = hypergradient(problem_of(outer), HYPER, mode)
        assert error(got.grad, want) < 1e-6, mode
        assert ("no estimator" if name in HIDDEN else "surrogate") in got.stats["checks"]


@pytest.mark.parametrize("mode", MODES)
def test_an_E_that_counts_is_refused(mode: str) -> None:
    calls = [0]

    def outer(p: Any, h: Any) -> Tensor:
        calls[0] += 1
        return fit(p, h, slice(None)) * (1 if calls[0] < 4 else 2)

    with pytest.raises((NonDeterministicError, UsageError), match="outer_loss"):
        hypergradient(problem_of(outer), HYPER, mode)


@pytest.mark.parametrize("made", [Forward, Reverse, Reversible])
def test_an_estimator_is_seen_once_E_is_no_longer_flat(made: Any) -> None:
    known = Measurements()
    estimated = lambda w: w + ((8 * w).round() / 8 - w).detach()  # noqa: E731
    outer = lambda p, h: torch.relu(fit({**p, "w": estimated(p["w"])}, h, slice(None)) - h["from"])  # noqa: E731
    mode = made()
    said = []
    for low in (100.0, -100.0):
        hyper = {**HYPER, "from": torch.tensor(low, dtype=F64)}
        got = hypergradient(problem_of(outer), hyper, mode, measurements=known)
        said.append("surrogate" in got.stats.get("checks", ""))
    assert said == [False, True]
    want = hypergradient(problem_of(outer), hyper, "reverse").grad
    assert error(got.grad, {name: float(x) for name, x in want.items()}) < 1e-10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "outer",
    [
        lambda p, h: fit(p, h, slice(None)) * p["v"].abs().sum().item(),
        lambda p, h: fit(p, h, slice(None)) + torch.from_numpy(p["v"].detach().numpy() ** 2).sum(),
        lambda p, h: fit(p, h, slice(None)) * float(p["w"].norm()),
    ],
)
def test_what_leaves_torch_is_refused(outer: Callable[..., Tensor], mode: str) -> None:
    with pytest.raises(UsageError, match="outer_loss: its gradient is not that of its value: it depends on a number"):
        hypergradient(problem_of(outer), HYPER, mode)
