"""What torch can train: each mode is right, or refuses it by its name before a number is shown."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient, plan
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes import Measurements
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params

F64 = torch.float64
HYPER = {"lr": torch.tensor(0.05, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}
STEPS = 3
MODES: dict[str, Mode] = {
    **{engine: Forward(engine=engine, compile=False) for engine in ("folded", "forward_over_reverse")},
    "one by one": Forward(engine="forward_over_reverse_loop", compile=False),
    "double backward": Forward(engine="reverse_over_reverse", compile=False),
    "reverse": Reverse(compile=False),
    "reversible": Reversible(compile=False),
}
START = torch.tensor([0.3, -0.9, 0.7, 1.1, -0.4, 0.2, 0.6, -1.3, 0.8], dtype=F64)
GOAL = START.flip(0) / 2


def outer(params: Params, hyper: Any) -> Tensor:
    return torch.stack([(w - 0.3).square().sum() for w in params.values()]).sum()


def problem(loss: Callable[[Params], Tensor], start: Params, **more: Any) -> Problem:
    return Problem(start, lambda w, hyper, batch: loss(w), outer, lambda t: t, SGD(), STEPS, **more)


def of_w(loss: Callable[[Tensor], Tensor]) -> Problem:
    return problem(lambda w: loss(w["w"]), {"w": START.clone()})


def trained(given: Problem, hyper: dict[str, Tensor]) -> float:
    """E after plain SGD, by first derivatives alone."""
    assert not callable(given.init)
    w = {name: x.clone() for name, x in given.init.items()}
    m = {name: torch.zeros_like(x) for name, x in w.items()}
    for t in range(STEPS):
        leaves = {name: x.detach().requires_grad_() for name, x in w.items()}
        g = torch.autograd.grad(given.inner_loss(leaves, hyper, t), list(leaves.values()))
        for name, d in zip(w, g, strict=True):
            m[name] = hyper["momentum"] * m[name] + d
            w[name] = w[name] - hyper["lr"] * m[name]
    return float(outer(w, hyper))


def by_differences(given: Problem, h: float = 1e-4) -> dict[str, float]:
    """Fourth-order central differences of the whole run."""

    def moved(name: str, step: float) -> float:
        return trained(given, {**HYPER, name: HYPER[name] + step})

    return {
        name: (8 * (moved(name, h) - moved(name, -h)) - (moved(name, 2 * h) - moved(name, -2 * h))) / (12 * h)
        for name in HYPER
    }


def assert_right(given: Problem, mode: Mode) -> None:
    known = Measurements()
    want = by_differences(given)
    got = {name: float(x) for name, x in hypergradient(given, HYPER, mode, measurements=known).grad.items()}
    assert got == pytest.approx(want, rel=1e-6, abs=1e-8)


def network(make: Callable[[], nn.Module], *shape: int, inside: bool = False) -> Problem:
    """A model whose kernels lie in memory with their channels last, or are brought there by the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, x = make().double(), torch.randn(shape, dtype=F64)
    form = torch.channels_last
    x = x.contiguous(memory_format=form)
    params = {name: w.detach() for name, w in model.named_parameters()}
    if not inside:
        params = {name: w.contiguous(memory_format=form) if w.ndim == 4 else w for name, w in params.items()}

    def loss(w: Params) -> Tensor:
        if inside:
            w = {name: x.contiguous(memory_format=form) if x.ndim == 4 else x for name, x in w.items()}
        return functional_call(model, w, (x,)).to(memory_format=form).square().mean()

    return problem(loss, params)


def small(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm(), nn.Tanh(), nn.AvgPool2d(2))


TAKEN: dict[str, Callable[[], Problem]] = {
    "mse": lambda: of_w(lambda w: functional.mse_loss(w.tanh(), GOAL)),
    "mse of the target": lambda: of_w(lambda w: nn.MSELoss()(GOAL, w.sin())),
    "mse, summed": lambda: of_w(lambda w: functional.mse_loss(w.tanh(), GOAL, reduction="sum")),
    "mse, each": lambda: of_w(lambda w: functional.mse_loss(w.tanh(), GOAL, reduction="none").square().sum()),
    "mse, broadcast": lambda: of_w(lambda w: functional.mse_loss(w.view(3, 3).sin(), GOAL[:9].view(3, 3))),
    "cumprod through zero": lambda: of_w(lambda w: (torch.cumprod(w - START * (w == START[3]), 0) * GOAL).sum() / 3),
    "channels last": lambda: network(lambda: small(nn.Identity), 2, 2, 6, 6),
    "channels last, batch normalised": lambda: network(
        lambda: small(lambda: nn.BatchNorm2d(4, track_running_stats=False)), 2, 2, 6, 6
    ),
    "channels last, group normalised": lambda: network(lambda: small(lambda: nn.GroupNorm(2, 4)), 2, 2, 6, 6),
    "channels last inside": lambda: network(lambda: small(nn.Identity), 2, 2, 6, 6, inside=True),
    "channels last inside, group normalised": lambda: network(
        lambda: small(lambda: nn.GroupNorm(2, 4)), 2, 2, 6, 6, inside=True
    ),
}  # fmt: skip


# engines whose derivatives are torch's own, which does not take these before 2.14
NOT_YET = {
    (name, mode)
    for name in ("channels last, group normalised", "channels last inside, group normalised")
    for mode in ("forward_over_reverse", "one by one")
    if torch.__version__ < (2, 14)
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TAKEN)
def test_every_mode_takes(name: str, mode: str) -> None:
    if (name, mode) in NOT_YET:
        with pytest.raises(UsageError, match=r"engine forward_over_reverse.*Use engine auto"):
            hypergradient(TAKEN[name](), HYPER, MODES[mode])
    else:
        assert_right(TAKEN[name](), MODES[mode])


BIAS_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda w: functional.layer_norm(w.view(3, 3), (3,), None, w[:3]).tanh().square().sum(),
    "layer norm of the input": lambda w: functional.layer_norm(w.view(3, 3), (3,), None, GOAL[:3]).tanh().sum(),
    "layer norm over two dimensions": lambda w: functional.layer_norm(
        w[:8].view(2, 2, 2), (2, 2), None, w[5:].view(2, 2)
    ).tanh().square().sum(),
}  # fmt: skip
NOT_AT_ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    # finite, and without a second derivative that could be told by autograd's own formula
    "norm": lambda w: torch.linalg.vector_norm(w * 0) + (w**4).sum() / 4,
    "norm of the third order": lambda w: torch.linalg.vector_norm(w * 0, 3) + (w**4).sum() / 4,
    "frobenius": lambda w: torch.linalg.matrix_norm(w.view(3, 3) * 0) + (w**4).sum() / 4,
    "normalised": lambda w: functional.normalize(torch.stack([w * 0, w]), dim=1).tanh().sum(),
    "cosine": lambda w: functional.cosine_similarity(torch.stack([w * 0, w]), torch.stack([w, w**2]), dim=1).sum(),
    "standard deviation": lambda w: (w * 0).std() + (w**4).sum() / 4,
    "distance": lambda w: torch.dist(w * 0, w * 0) + (w**4).sum() / 4,
}


@pytest.mark.parametrize("name", [*BIAS_ALONE, *NOT_AT_ZERO])
def test_folded_takes(name: str) -> None:
    assert_right(of_w({**BIAS_ALONE, **NOT_AT_ZERO}[name]), MODES["folded"])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_its_author_has_compiled_runs_as_it_was_written(mode: str, backend: str) -> None:
    known = Measurements()

    def loss(w: Tensor) -> Tensor:
        return (torch.tanh(w * GOAL).square().mean() + w.square().sum() / 9).sin()

    compiled: Any = torch.compile(loss, backend=backend)
    assert_right(of_w(lambda w: compiled(w)), MODES[mode])
    end = lambda w, hyper: compiled(w["w"])  # noqa: E731
    got, want = (
        hypergradient(replace(of_w(loss), outer_loss=each), HYPER, MODES[mode], measurements=known).grad
        for each in (end, lambda w, h: loss(w["w"]))
    )
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, rtol=1e-12, atol=0)


def test_a_tangent_that_is_lost_in_a_compiled_step_is_taken_by_another_engine() -> None:
    """From step 1 on: what was compiled does not have it, and the step is taken once more."""

    def loss(p: Params, h: Any, scale: Any) -> Tensor:
        if not isinstance(scale, Tensor):
            scale = torch.tensor(float(scale == 0), dtype=F64)
        return (p["w"] ** 4).sum() / 4 + torch.linalg.vector_norm(p["w"] * scale)

    given = replace(of_w(lambda w: w.sum()), inner_loss=loss, batch=lambda t: torch.tensor(float(t == 0), dtype=F64))
    assert_right(given, Forward(compile=True))


def test_layer_normalisation_with_a_bias_alone_is_refused_by_double_backwards() -> None:
    with pytest.raises(UsageError, match="layer normalisation with a bias alone"):
        hypergradient(of_w(BIAS_ALONE["layer norm"]), HYPER, MODES["double backward"])


EMBEDDED, PLACES = nn.Embedding(4, 3, sparse=True).double(), torch.tensor([0, 2, 2])
BAG = nn.EmbeddingBag(4, 3, sparse=True, mode="sum").double()
TABLE = {"weight": torch.linspace(-1, 1, 12, dtype=F64).view(4, 3)}
REFUSED: dict[str, tuple[Callable[[], Problem], str]] = {
    "complex": (
        lambda: problem(lambda w: w["w"].abs().square().sum(), {"w": START.to(torch.complex128)}),
        r"init: w is complex \(torch\.complex128\)",
    ),
    "complex beside": (
        lambda: problem(lambda w: w["w"].square().sum(), {"w": START, "c": START.to(torch.complex64)}),
        r"init: c is complex \(torch\.complex64\)",
    ),
    "integers": (
        lambda: problem(lambda w: w["w"].square().sum(), {"w": START, "n": torch.tensor(3)}),
        r"init: n is a torch\.int64 tensor; .*a buffer",
    ),
    "bytes": (
        lambda: problem(lambda w: w["w"].square().sum(), {"w": START, "n": torch.ones(2, dtype=torch.uint8)}),
        r"init: n is a torch\.uint8 tensor",
    ),
    "truth": (
        lambda: problem(lambda w: w["w"].square().sum(), {"mask": START > 0, "w": START}),
        r"init: mask is a torch\.bool tensor",
    ),
    "sparse embedding": (
        lambda: problem(lambda w: functional_call(EMBEDDED, w, (PLACES,)).tanh().sum(), TABLE),
        "inner_loss: got an operator with a sparse gradient .EmbeddingBackward0",
    ),
    "sparse embedding bag": (
        lambda: problem(lambda w: functional_call(BAG, w, (PLACES[None],)).tanh().sum(), TABLE),
        "inner_loss: got an operator with a sparse gradient .EmbeddingBagBackward0",
    ),
    "sparse gather": (
        lambda: of_w(lambda w: torch.gather(w, 0, PLACES, sparse_grad=True).tanh().sum()),
        "inner_loss: got an operator with a sparse gradient .GatherBackward0",
    ),
    "sparse embedding of the outer loss": (
        lambda: replace(
            problem(lambda w: w["weight"].square().sum(), TABLE),
            outer_loss=lambda w, hyper: functional_call(EMBEDDED, w, (PLACES,)).square().sum(),
        ),
        "outer_loss: got an operator with a sparse gradient",
    ),
    "reentrant checkpointing": (
        lambda: of_w(lambda w: checkpoint(lambda x: x.sin() * x, w, use_reentrant=True).sum()),
        "inner_loss: got torch.utils.checkpoint with use_reentrant=True",
    ),
    "reentrant checkpointing further on": (
        lambda: of_w(lambda w: (w * checkpoint(lambda x: x.exp(), w * 2, use_reentrant=True)).sum()),
        "inner_loss: got torch.utils.checkpoint with use_reentrant=True",
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFUSED)
def test_every_mode_refuses_by_name(name: str, mode: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(UsageError, match=said):
        hypergradient(make(), HYPER, MODES[mode])


@pytest.mark.parametrize("name", ["complex", "sparse embedding", "reentrant checkpointing"])
def test_a_plan_refuses_alike(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(UsageError, match=said):
        plan(make(), HYPER)


def test_the_same_without_what_is_refused_is_taken() -> None:
    dense = nn.Embedding(4, 3).double()
    assert_right(problem(lambda w: functional_call(dense, w, (PLACES,)).tanh().sum(), TABLE), MODES["folded"])
    assert_right(of_w(lambda w: checkpoint(lambda x: x.sin() * x, w * 1.0, use_reentrant=False).sum()), MODES["folded"])
    parts = of_w(lambda w: torch.view_as_complex(torch.stack([w, w.sin()], 1)).abs().pow(2).sum() / 3)
    assert_right(parts, MODES["reverse"])
