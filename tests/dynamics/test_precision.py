"""Products in bf16: bounded errors, the same for every operator that a model has, and float32 for all else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient, models, optimizers
from hyperopt_cli.checks.examination import Examination
from hyperopt_cli.dynamics.derivatives import gradient, gradient_and_pullback
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.precision import products_in
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import UsageError
from hyperopt_cli.models.batch_norm import use_batch_statistics
from hyperopt_cli.modes import Measurements, Mode, plan
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.problem import Chunked
from tests.cases import CASES

ROUNDOFF = 2.0**-9  # bf16 keeps 8 bits and rounds to the nearest
MODES: dict[str, Mode] = {
    "forward": Forward(engine="forward_over_reverse"),
    "forward by double backwards": Forward(engine="reverse_over_reverse"),
    "reverse": Reverse(),
    "reversible": Reversible(compile=False),
}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
HYPER = {"lr": torch.tensor(0.05), "momentum": torch.tensor(0.9), "l2": torch.tensor(0.01)}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


def points() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    x, w = torch.randn(40, 6, generator=rng), torch.randn(6, 2, generator=rng)
    return x, torch.randn(40, 2, generator=rng), w


def least_squares(**changed: Any) -> Problem:
    x, y, w = points()
    made = Problem(
        init={"w": w},
        inner_loss=lambda p, h, b: (b[0] @ p["w"] - b[1]).square().mean() + h["l2"] * p["w"].square().sum() / 2,
        outer_loss=lambda p, h: (x @ p["w"] - y).square().mean(),
        batch=lambda t: (x, y),
        optimizer=optimizers.SGD(),
        steps=5,
        precision="bf16",
    )
    return replace(made, **changed)


def at_start(problem: Problem) -> tuple[Any, Any, Any]:
    dynamics = Dynamics.of(problem, HYPER)
    return dynamics.loss_at(0), dynamics.layout.unpack(dynamics.start.params), dynamics.hyper_at(HYPER, 0)


class Seen(TorchDispatchMode):
    """The dtypes of each kind of operator's inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        given = {x.dtype for x in tree_leaves(args) if isinstance(x, Tensor) and x.is_floating_point()}
        self.dtypes[name] = self.dtypes.get(name, set()) | given
        return func(*args, **(kwargs or {}))

    def of(self, *names: str) -> set[torch.dtype]:
        return {dtype for name in names for dtype in self.dtypes.get(name, ())}


@contextmanager
def seeing() -> Iterator[Seen]:
    with Seen() as seen:
        yield seen


def within(got: Tensor, want: Tensor, size: Tensor) -> None:
    """Seven roundings of terms of that size bound the error; a thousandth of one does not."""
    error = (got.double() - want).abs()
    assert bool((error <= 7 * ROUNDOFF * size).all())
    assert bool((error > 1e-3 * ROUNDOFF * size).any())


def test_the_gradient_is_off_by_no_more_than_its_roundings() -> None:
    x, y, w = (each.double() for each in points())
    loss, params, hyper = at_start(least_squares())
    residual = x @ w - y
    want = 2 / y.numel() * x.T @ residual + 0.01 * w
    size = 2 / y.numel() * x.T.abs() @ (x.abs() @ w.abs() + residual.abs())
    within(gradient(loss, params, hyper)[1]["w"], want, size)


@pytest.mark.parametrize("name", ENGINES)
def test_the_tangents_are_off_by_no_more_than_their_roundings(name: str) -> None:
    x, y, _ = (each.double() for each in points())
    loss, params, hyper = at_start(least_squares())
    v = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(4))
    out = ENGINES[name](loss, params, hyper, {"w": v}, {key: torch.zeros(3) for key in hyper})
    want = 2 / y.numel() * x.T @ (x @ v.double()) + 0.01 * v
    within(out.grad_tangents["w"], want, 2 / y.numel() * x.T.abs() @ (x.abs() @ v.double().abs()))
    assert {leaf.dtype for leaf in tree_leaves(out)} == {torch.float32}


def test_the_pullback_is_off_by_no_more_than_its_roundings() -> None:
    x, y, _ = (each.double() for each in points())
    loss, params, hyper = at_start(least_squares())
    u = torch.randn(6, 2, generator=torch.Generator().manual_seed(4))
    by_w, by_hyper = gradient_and_pullback(loss, params, hyper)[2]({"w": u})
    want = 2 / y.numel() * x.T @ (x @ u.double()) + 0.01 * u
    within(by_w["w"], want, 2 / y.numel() * x.T.abs() @ (x.abs() @ u.double().abs()))
    torch.testing.assert_close(by_hyper["l2"], (u * params["w"]).sum(), rtol=1e-5, atol=0)
    assert by_w["w"].dtype == torch.float32


@EVERY_MODE
def test_products_are_bf16_and_all_that_is_kept_is_float32(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Measurements()
    monkeypatch.setattr(Account, "examines", False)  # which is done in float64
    monkeypatch.setattr(Examination, "passes", lambda self, name, is_given=False: True)
    with seeing() as seen:
        out = hypergradient(least_squares(), HYPER, MODES[mode], measurements=known)
    assert torch.bfloat16 in seen.of(*PRODUCTS)
    assert {leaf.dtype for leaf in tree_leaves((out.value, out.grad, out.params))} == {torch.float32}
    with seeing() as seen:
        hypergradient(least_squares(precision=None), HYPER, MODES[mode], measurements=known)
    assert seen.of(*PRODUCTS) == {torch.float32}


def test_the_outer_objective_and_its_gradient_are_float32() -> None:
    problem = least_squares()
    with seeing() as seen:
        outer_objective(problem, dict(problem.init), HYPER)  # type: ignore[arg-type]
    assert seen.of(*PRODUCTS) == {torch.float32}


@EVERY_MODE
def test_the_hypergradient_is_near_that_of_float32_and_not_the_same(mode: str) -> None:
    known = Measurements()
    got = hypergradient(least_squares(), HYPER, MODES[mode], measurements=known).grad
    want = hypergradient(least_squares(precision=None), HYPER, MODES[mode], measurements=known).grad
    for key in HYPER:
        error = float((got[key] - want[key]).abs() / want[key].abs())
        assert error < 20 * ROUNDOFF, key
    assert any(not torch.equal(got[key], want[key]) for key in HYPER)


@EVERY_MODE
def test_float64_keeps_every_bit_whatever_torch_was_told(mode: str) -> None:
    known = Measurements()
    _, problem, hyper = CASES["momentum"]
    want = hypergradient(problem, hyper, MODES[mode], measurements=known)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        got = hypergradient(problem, hyper, MODES[mode], measurements=known)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.value, want.value)
    assert all(torch.equal(got.grad[key], want.grad[key]) for key in hyper)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_float32_means_float32_whatever_torch_was_told(precision: Any) -> None:
    """A GPU's default for convolutions is tf32, and "medium" rounds float32 products to bf16 on some processors."""
    told: set[tuple[Any, ...]] = set()
    plain = least_squares(precision=precision)

    def telling(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments: told.add(settings()[:6]) or loss(*arguments)  # type: ignore[func-returns-value]

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert settings()[4] == "bf16"
        hypergradient(
            replace(plain, inner_loss=telling(plain.inner_loss), outer_loss=telling(plain.outer_loss)), HYPER, "reverse"
        )
    finally:
        torch.set_float32_matmul_precision(before)
    assert told == {("highest", "ieee", "ieee", "ieee", "ieee", False)}


def test_a_long_bf16_run_is_reversed_bit_for_bit() -> None:
    """Or it would raise; the start is compared."""
    out = hypergradient(least_squares(steps=150), HYPER, Reversible(compile=False))
    again = hypergradient(least_squares(steps=150), HYPER, Reversible(compile=False))
    assert all(torch.equal(out.grad[key], again.grad[key]) for key in HYPER)


@EVERY_MODE
def test_chunks_and_bf16_go_together(mode: str) -> None:
    known = Measurements()
    x, y, _ = points()
    chunks = Chunked([((x[:25], y[:25]), 25 / 40), ((x[25:], y[25:]), 15 / 40)])
    want = hypergradient(least_squares(precision=None), HYPER, MODES[mode], measurements=known).grad
    with seeing() as seen:
        got = hypergradient(least_squares(batch=lambda t: chunks), HYPER, MODES[mode], measurements=known).grad
    assert torch.bfloat16 in seen.of(*PRODUCTS)
    assert all(float((got[key] - want[key]).abs() / want[key].abs()) < 20 * ROUNDOFF for key in HYPER)


def test_a_plan_is_made_in_bf16() -> None:
    with seeing() as seen:
        assert plan(least_squares(steps=50), HYPER).predictions
    assert torch.bfloat16 in seen.of(*PRODUCTS)


class Attention(nn.Module):
    """A product, attention in both of torch's forms, layer normalisation and an einsum."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.attention, self.norm, self.weights = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.LayerNorm(8),
            weights,
        )
        self.embedding, self.out = nn.Parameter(torch.randn(8, 8) / 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.embedding
        x = self.norm(x + self.attention(x, x, x, need_weights=self.weights)[0])
        x = x + functional.scaled_dot_product_attention(x, x, x)
        out: Tensor = self.out(torch.einsum("btc,cd->btd", x, self.embedding).mean(dim=1))
        return out


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    picture = (3, 8, 8)
    return {
        "mlp": (lambda: models.mlp((6,), 3, hidden=(8, 8), activation="tanh"), (6,)),
        "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), (6,)),
        "group norm": (lambda: models.convnet(picture, 3, widths=(8, 8), norm="group"), picture),
        "batch norm": (lambda: batch_norm(models.convnet(picture, 3, widths=(8, 8), norm="batch")), picture),
        "wide resnet": (lambda: batch_norm(models.wide_resnet(picture, 3, depth=10)), picture),
        "attention": (lambda: Attention(False), (4, 8)),
        "attention with weights": (lambda: Attention(True), (4, 8)),
    }


def batch_norm(model: nn.Module) -> nn.Module:
    use_batch_statistics(model)
    return model


def shaken(x: Tensor, seed: int) -> Tensor:
    """Every number off by one rounding to bf16, up or down."""
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x * (1 + ROUNDOFF * signs)


@pytest.mark.parametrize("engine", ["forward_over_reverse", "reverse_over_reverse", "pullback"])
@pytest.mark.parametrize("network", networks())
def test_a_networks_error_is_that_of_rounding_its_weights_and_inputs(network: str, engine: str) -> None:
    """Not more than 8 times what one rounding of all of them does to the float64 gradient and Hessian product."""
    make, shape = networks()[network]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x, y = make(), torch.randn(16, *shape), torch.randint(0, 3, (16,))
        v = {name: torch.randn_like(w) for name, w in model.named_parameters()}
    init = {name: w.detach() for name, w in model.named_parameters()}

    def products(init: dict[str, Tensor], x: Tensor, precision: Any = None) -> tuple[Tensor, Tensor]:
        problem = Problem(
            init=init,
            inner_loss=lambda p, h, b: functional.cross_entropy(functional_call(model, p, (x,)), y),
            outer_loss=lambda p, h: next(iter(p.values())).sum(),
            batch=lambda t: None,
            optimizer=optimizers.SGD(),
            steps=1,
            precision=precision,
        )
        along = {name: d.to(x.dtype) for name, d in v.items()}
        with surroundings(precision):
            loss, params, hyper = at_start(problem)
            if engine == "pullback":
                _, g, pullback = gradient_and_pullback(loss, params, hyper)
                return flat(g), flat(pullback(along)[0])
            w_dot = {name: torch.stack([d, 2 * d]) for name, d in along.items()}
            out = ENGINES[engine](loss, params, hyper, w_dot, {key: torch.zeros(2) for key in hyper})
        return flat(out.grads), flat({name: d[0] for name, d in out.grad_tangents.items()})

    with seeing() as seen:
        got = products(init, x, "bf16")
    double = {name: w.double() for name, w in init.items()}
    want = products(double, x.double())
    for i in range(2):
        moved = [
            products(
                {name: shaken(w, seed + j) for j, (name, w) in enumerate(double.items())}, shaken(x.double(), seed)
            )
            for seed in (100, 200, 300)
        ]
        sensitivity = max(float((each[i] - want[i]).norm()) for each in moved)
        assert 0.1 * sensitivity < float((got[i] - want[i]).norm()) < 8 * sensitivity
    assert seen.of(*PRODUCTS) == {torch.bfloat16}
    normalising = {name for name in seen.dtypes if "norm" in name and "linalg" not in name and "weight" not in name}
    assert seen.of(*normalising) <= {torch.float32}
    assert seen.of("_log_softmax", "nll_loss_forward") == {torch.float32}


def flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([x.detach().double().flatten() for x in named.values()])


@pytest.mark.parametrize(
    ("precision", "dtype", "said"),
    [
        ("bf16", torch.float64, "got bf16, which lowers float32, for parameters of torch.float64"),
        ("tf32", torch.float64, "got tf32, which lowers float32"),
        ("tf32", torch.float32, "tf32 is a format of GPUs; on the device cpu torch would compute in float32"),
    ],
)
def test_a_precision_that_is_not_there_is_refused(precision: Any, dtype: torch.dtype, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        hypergradient(least_squares(precision=precision, init={"w": points()[2].to(dtype)}), HYPER)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision: got 'float16'; allowed are 'tf32', 'bf16', or None"):
        least_squares(precision="float16")


def settings() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return (
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,
        backends.cudnn.allow_tf32,
        backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
    )


@pytest.mark.parametrize(
    ("precision", "inside"),
    [
        (None, ("highest", "ieee", "ieee", "ieee", "ieee", False, False)),
        ("tf32", ("high", "tf32", "tf32", "tf32", "ieee", True, False)),
        ("bf16", ("highest", "ieee", "ieee", "ieee", "ieee", False, True)),
    ],
)
def test_torchs_settings_are_made_and_restored(precision: Any, inside: tuple[Any, ...]) -> None:
    before = settings()
    with products_in(precision):
        assert settings() == inside
        with products_in(None):
            assert settings()[1] == "ieee"
        assert settings() == inside
    assert settings() == before


def test_torchs_settings_are_restored_after_an_error() -> None:
    def failing(p: Any, h: Any, b: Any) -> Tensor:
        raise KeyError

    before = settings()
    with pytest.raises(KeyError):
        hypergradient(least_squares(inner_loss=failing), HYPER)
    assert settings() == before


def test_settings_in_which_torch_contradicts_itself_are_restored_too() -> None:
    backends: Any = torch.backends
    before = backends.cuda.matmul.fp32_precision
    backends.cuda.matmul.fp32_precision = "tf32"  # and the older setting says highest
    try:
        with products_in(None):
            assert backends.cuda.matmul.fp32_precision == "ieee"
        assert backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        backends.cuda.matmul.fp32_precision = before


def test_autocast_alone_cannot_take_a_tangent_through_group_normalisation() -> None:
    """What the way back to float32 is for; once torch can do without, so can `dynamics/precision.py`."""
    model = models.convnet((3, 8, 8), 3, widths=(8,), norm="group")
    params = {name: w.detach() for name, w in model.named_parameters()}
    x = torch.randn(4, 3, 8, 8)

    def loss(w: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            return functional_call(model, w, (x,)).float().square().mean()

    with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match="type"):
        torch.func.jvp(torch.func.grad(loss), (params,), (params,))
