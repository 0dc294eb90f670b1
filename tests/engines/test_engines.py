"""Every engine against the reference on every model of the package, and what no engine may do in silence."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils._pytree import tree_map

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient, models
from hyperopt_cli.checks.symmetry import asymmetry, directions
from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.surroundings import surroundings
from hyperopt_cli.engines import ENGINES, MEASURED, Tangents
from hyperopt_cli.engines.dense import MAX_PARAMETERS
from hyperopt_cli.errors import UsageError
from hyperopt_cli.instantiate.experiment import penalty, seeded
from hyperopt_cli.modes import Measurements
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Hyper
from hyperopt_cli.recipe.json_schema import expected
from tests.reference import differences, value_of

CPU, F64 = torch.device("cpu"), torch.float64
SHAPE, CLASSES = (1, 8, 8), 3
MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: models.logistic(SHAPE, CLASSES),
    "mlp": lambda: models.mlp(SHAPE, CLASSES, hidden=(5, 4), activation="tanh"),
    "mlp, relu and dropout": lambda: models.mlp(SHAPE, CLASSES, hidden=(6,), dropout=0.3),
    "convnet": lambda: models.convnet(SHAPE, CLASSES, widths=(4, 4)),
    "convnet, batch": lambda: models.convnet(SHAPE, CLASSES, widths=(3, 4), norm="batch"),
    "convnet, none": lambda: models.convnet(SHAPE, CLASSES, widths=(3, 4), norm="none"),
    "resnet": lambda: models.resnet(SHAPE, CLASSES, depth=8),
    "resnet, group": lambda: models.resnet(SHAPE, CLASSES, depth=8, norm="group"),
    "wide_resnet": lambda: models.wide_resnet(SHAPE, CLASSES, depth=10),
    "quadratic": lambda: models.quadratic([2.0, 1.0, 0.3], [1.0, 3.0, -2.0]),
}
WRONG_IN_FORWARD = ("convnet, batch", "resnet", "wide_resnet")  # reverse over forward, through batch normalisation
REFERENCE = "reverse_over_reverse_loop"


class Case(NamedTuple):
    """A loss, and where its derivatives are taken."""

    loss: Loss
    params: Params
    hyper: StepHyper


def case(name: str, direct: str = "none") -> Case:
    with seeded(3, CPU):
        model = MODELS[name]().double().train()
    models.batch_norm.use_batch_statistics(model)
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(7, *SHAPE, generator=generator, dtype=F64)
    targets = torch.randint(0, CLASSES, (7,), generator=generator)
    params = {key: w.detach() for key, w in model.named_parameters()}

    def loss(params: Params, hyper: StepHyper) -> Tensor:
        with seeded(11, CPU):
            outputs = functional_call(model, params, (inputs,))
        value = outputs if outputs.ndim == 0 else functional.cross_entropy(outputs, targets)
        if "weights" in hyper:
            decay = hyper["weights"]
            assert isinstance(decay, dict)
            return value + torch.stack([(decay[key] * w.square()).sum() for key, w in params.items()]).sum()
        return value + penalty(params, hyper["l2"]) if "l2" in hyper else value

    hyper: StepHyper = {"lr": torch.tensor(0.1, dtype=F64)}
    if direct == "l2":
        hyper["l2"] = torch.tensor(0.03, dtype=F64)
    if direct == "per weight":
        hyper["weights"] = {key: torch.full_like(w, 0.02) for key, w in params.items()}
    return Case(loss, params, hyper)


def columns(like: Any, num: int, seed: int) -> Any:
    """Random directions, with `num` in front of every tensor of a tree of dictionaries."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: drawn(entry) for name, entry in x.items()}
        return torch.randn(num, *x.shape, generator=generator, dtype=x.dtype)

    return drawn(like)


def in_blocks(engine: str, at: Case, w_dot: Params, hyper_dot: StepHyper, size: int) -> Tangents:
    """The tangents of an engine that takes `size` columns at once."""
    num = next(iter(w_dot.values())).shape[0]
    parts = [
        MEASURED[engine](*at, *tree_map(lambda x: x[k : k + size], (w_dot, hyper_dot)))  # noqa: B023
        for k in range(0, num, size)
    ]
    value_dot, g_dot = tree_map(lambda *each: torch.cat(each), *(part[2:] for part in parts))
    return Tangents(parts[0].loss, parts[0].grads, value_dot, g_dot)


@pytest.fixture(scope="module")
def by_the_reference() -> Callable[..., Any]:
    """`(name, direct, num, size)`: directions, and what the reference says; once for all engines."""

    @cache
    def found(name: str, direct: str, num: int, size: int | None) -> Any:
        at = case(name, direct)
        w_dot, hyper_dot = columns(at.params, num, 1), columns(at.hyper, num, 2)
        with surroundings():
            return w_dot, hyper_dot, in_blocks(REFERENCE, at, w_dot, hyper_dot, size or num)

    return found


@pytest.mark.parametrize(("num", "size"), [(1, None), (3, None), (3, 2), (3, 1)])
@pytest.mark.parametrize("direct", ["none", "l2", "per weight"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", [name for name in MEASURED if name != REFERENCE])
def test_equals_the_reference(
    engine: str, name: str, direct: str, num: int, size: int | None, by_the_reference: Callable[..., Any]
) -> None:
    at = case(name, direct)
    if engine == "dense" and sum(w.numel() for w in at.params.values()) > MAX_PARAMETERS:
        pytest.skip("too many parameters for a dense Hessian")
    if engine == "reverse_over_forward" and name in WRONG_IN_FORWARD:
        pytest.skip("torch is silently wrong there")
    w_dot, hyper_dot, want = by_the_reference(name, direct, num, size)
    with surroundings():
        got = in_blocks(engine, at, w_dot, hyper_dot, size or num)
    largest = max(float(x.abs().max()) for x in want.grad_tangents.values())
    torch.testing.assert_close(got.grad_tangents, want.grad_tangents, rtol=1e-10, atol=1e-10 * largest)
    torch.testing.assert_close(got.grads, want.grads, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.loss_tangents, want.loss_tangents, rtol=1e-9, atol=1e-12)
    assert not any(x.requires_grad for x in (*got, *want) if isinstance(x, Tensor))
    assert not any(x.requires_grad for x in (*got.grads.values(), *got.grad_tangents.values()))


@pytest.mark.parametrize("engine", MEASURED)
def test_equals_the_tangent_worked_out_by_hand(engine: str) -> None:
    """L = a . w^3 + l2 |w|^2 / 2:  g' = (6 a w + l2) w' + w l2'."""
    a, w = torch.tensor([1.0, -2.0, 0.5], dtype=F64), torch.tensor([0.3, 0.7, -1.1], dtype=F64)
    l2 = torch.tensor(0.4, dtype=F64)
    w_dot, l2_dot = columns(w, 2, 1), columns(l2, 2, 2)

    def loss(params: Params, hyper: StepHyper) -> Tensor:
        assert isinstance(hyper["l2"], Tensor)
        return (a * params["w"] ** 3).sum() + hyper["l2"] * params["w"].square().sum() / 2

    with surroundings():
        got = MEASURED[engine](loss, {"w": w}, {"l2": l2}, {"w": w_dot}, {"l2": l2_dot})
    torch.testing.assert_close(got.grad_tangents["w"], (6 * a * w + l2) * w_dot + l2_dot[:, None] * w)
    torch.testing.assert_close(got.grads["w"], 3 * a * w**2 + l2 * w)
    torch.testing.assert_close(got.loss_tangents, w_dot @ (3 * a * w**2 + l2 * w) + l2_dot * w.square().sum() / 2)


@pytest.mark.parametrize("engine", MEASURED)
def test_a_loss_that_is_linear_in_w_has_no_second_derivative(engine: str) -> None:
    params = {"w": torch.ones(3, dtype=F64), "unused": torch.ones(2, dtype=F64)}
    hyper: StepHyper = {"lr": torch.tensor(0.1, dtype=F64)}
    with surroundings():
        got = MEASURED[engine](
            lambda w, h: 2 * w["w"].sum(), params, hyper, columns(params, 2, 1), columns(hyper, 2, 2)
        )
    assert {name: x.shape for name, x in got.grad_tangents.items()} == {"w": (2, 3), "unused": (2, 2)}
    assert not any(x.any() for x in got.grad_tangents.values())


def test_the_dense_hessian_is_refused_for_a_large_model() -> None:
    params = {"w": torch.ones(MAX_PARAMETERS + 1, dtype=F64)}
    with pytest.raises(UsageError, match=r"engine dense: the model has 2,001 parameters; allowed are 2,000"):
        ENGINES["dense"](lambda w, h: w["w"].square().sum(), params, {}, columns(params, 1, 1), {})


def test_the_recipe_knows_every_engine() -> None:
    assert expected(("mode", "engine")) == f"one of auto, {', '.join(ENGINES)}"


# --- no silent fallback ---


@pytest.fixture
def problem_with() -> Callable[[Callable[[Tensor], Tensor]], Problem]:
    """A problem whose inner loss passes its parameter [4] through an operator."""

    def made(operator: Callable[[Tensor], Tensor]) -> Problem:
        start = {"w": torch.tensor([0.3, 0.5, -0.2, 0.9], dtype=F64)}
        return Problem(
            start,
            lambda params, hyper, batch: (operator(params["w"]) ** 3).sum(),
            lambda params, hyper: params["w"].square().sum(),
            lambda t: None,
            SGD(),
            3,
        )

    return made


HYPER: Hyper = {"lr": torch.tensor(0.01, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}


def scattered(w: Tensor) -> Tensor:
    """Has no batching rule."""
    return w.put(torch.tensor([0]), w[1:2] ** 2)


class Doubled(torch.autograd.Function):
    """Has no forward derivative, and none under vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Doubled.apply(grad)


@torch.library.custom_op("hyperopt_tests::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    """Has no batching rule, its derivative neither."""
    return 3 * x


tripled.register_autograd(lambda ctx, grad: tripled(grad))
tripled.register_fake(lambda x: torch.empty_like(x))


@pytest.mark.parametrize(
    ("engine", "operator", "said"),
    [
        ("forward_over_reverse", scattered, "aten::put has no batching rule .*; use forward_over_reverse_loop or"),
        ("reverse_over_reverse", tripled, "tripled has no batching rule .*; use forward_over_reverse_loop or"),
        ("forward_over_reverse", Doubled.apply, "setup_context|forward"),
        ("forward_over_reverse_loop", Doubled.apply, "setup_context|forward"),
        ("forward_over_reverse_loop", lambda w: functional.ctc_loss(
            torch.outer(w, w)[:, None].log_softmax(2), torch.tensor([[1]]), (4,), (1,)),
            "_ctc_loss has no forward derivative"),
        ("reverse_over_reverse_loop", lambda w: functional.ctc_loss(
            torch.outer(w, w)[:, None].log_softmax(2), torch.tensor([[1]]), (4,), (1,)),
            "_ctc_loss_backward has no second derivative"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_take_is_refused_by_name(
    engine: str, operator: Any, said: str, problem_with: Callable[..., Problem]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")
        with pytest.raises(UsageError, match=f"engine {engine}: .*({said})"):
            hypergradient(problem_with(operator), HYPER, Forward(engine=engine))


@pytest.mark.parametrize("engine", ["reverse_over_reverse_loop", "forward_over_reverse_loop"])
def test_the_loops_take_what_has_no_batching_rule(engine: str, problem_with: Callable[..., Problem]) -> None:
    want = hypergradient(problem_with(scattered), HYPER, "reverse").grad
    got = hypergradient(problem_with(scattered), HYPER, Forward(engine=engine)).grad
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_torch_falls_back_as_before_once_an_engine_is_done(problem_with: Callable[..., Problem]) -> None:
    with pytest.raises(UsageError):
        hypergradient(problem_with(scattered), HYPER, Forward(engine="forward_over_reverse"))
    assert torch._C._functorch._is_vmap_fallback_enabled()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_of_the_model_stays_what_it_is(engine: str, problem_with: Callable[..., Problem]) -> None:
    def broken(w: Tensor) -> Tensor:
        raise RuntimeError("the model is broken")

    params = {"w": torch.ones(2, dtype=F64)}
    with pytest.raises(RuntimeError, match=r"^the model is broken$"):
        ENGINES[engine](lambda w, h: broken(w["w"]), params, {}, columns(params, 2, 1), {})


# --- beside central differences ---

X = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda z: functional.layer_norm(z, (6,)),
    "batch norm": lambda z: functional.batch_norm(z, None, None, training=True),
    "instance norm": lambda z: functional.instance_norm(z.view(9, 2, 3)).flatten(1),
}
RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "group norm": lambda z: functional.group_norm(z, 2),
    "softmax": lambda z: z.softmax(dim=1),
    "tanh": torch.tanh,
}


def normalised(by: Callable[[Tensor], Tensor], dtype: torch.dtype = F64) -> Problem:
    start = {"w": torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=F64).to(dtype)}
    x = X.to(dtype)
    targets = torch.arange(9) % 6

    def loss(params: Params, *rest: Any) -> Tensor:
        return functional.cross_entropy(by(x @ params["w"].T), targets)

    return Problem(start, loss, loss, lambda t: None, SGD(), 3)


def test_no_run_takes_reverse_over_forward_and_it_is_said_what_to_take() -> None:
    said = "which bench hvp alone takes; allowed are auto, .*; auto takes a right one"
    with pytest.raises(ValueError, match=f"engine: got 'reverse_over_forward', {said}"):
        Forward(engine="reverse_over_forward")
    assert set(MEASURED) - set(ENGINES) == {"reverse_over_forward"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*NORMALISED, *RIGHT])
def test_an_engine_that_is_set_is_obeyed(name: str, engine: str, dtype: torch.dtype) -> None:
    problem = normalised({**NORMALISED, **RIGHT}[name], dtype)
    got = hypergradient(problem, HYPER, Forward(engine=engine))
    assert got.stats["engine"] == engine
    assert "engine_why" not in got.stats
    rtol = 1e-10 if dtype == F64 else 1e-4
    torch.testing.assert_close(got.grad, hypergradient(problem, HYPER, "reverse").grad, rtol=rtol, atol=1e-8)


def layer_scalar(t: Tensor) -> Tensor:
    x = torch.stack((t, torch.zeros_like(t))).reshape(1, 2)
    weight, bias = torch.tensor([1, 2], dtype=F64), torch.zeros(2, dtype=F64)
    return functional.layer_norm(x, [2], weight, bias, 0.25).sum()


def batch_scalar(t: Tensor) -> Tensor:
    x = torch.stack([(i + 1) * t + (i % 3 - 1) * t * t + i for i in range(8)]).reshape(2, 2, 2)
    weight, bias = torch.tensor([1.5, -0.5], dtype=F64), torch.tensor([0.25, 1], dtype=F64)
    y = functional.batch_norm(x, None, None, weight, bias, training=True, eps=0.25)
    return (y * torch.arange(1, 9, dtype=F64).reshape(2, 2, 2)).sum()


@pytest.mark.parametrize(
    ("function", "t", "want"), [(layer_scalar, 0.7, 0.7749142079590942), (batch_scalar, -6.0, -0.20703015646993195)]
)
@pytest.mark.parametrize("engine", MEASURED)
def test_second_derivatives_of_the_scalar_reproducers(engine: str, function: Any, t: float, want: float) -> None:
    """Of pytorch #196700 and #196699; one number is always symmetric, so that a wrong one shows only here."""
    with surroundings():
        got = MEASURED[engine](
            lambda w, h: function(w["t"]),
            {"t": torch.tensor(t, dtype=F64)},
            {},
            {"t": torch.ones(1, dtype=F64)},
            {},
        ).grad_tangents["t"]
    if engine == "reverse_over_forward":
        assert abs(float(got) - want) > 0.1, "torch has become right: a recipe may take it again"
    else:
        assert float(got) == pytest.approx(want, rel=1e-12)


def test_a_hessian_of_zero_is_symmetric() -> None:
    start = {"w": torch.ones(3, dtype=F64)}
    problem = Problem(
        start, lambda params, hyper, batch: 2 * params["w"].sum(), lambda params, hyper: params["w"].square().sum(),
        lambda t: None, SGD(), 3,
    )  # fmt: skip
    for engine in ENGINES:
        assert hypergradient(problem, HYPER, Forward(engine=engine)).grad["lr"].isfinite()


def test_asymmetry_is_that_of_the_matrix_and_does_not_fall_with_its_size() -> None:
    """Of a random matrix M the figure is about |M - M'| / |M| = sqrt(2), and 0 of M + M'."""
    for n in (10, 1000):
        matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=F64)
        both = directions({"w": torch.zeros(n, dtype=F64)}, 2)
        assert asymmetry(both, {"w": both["w"] @ matrix.T}) > 0.05
        assert asymmetry(both, {"w": both["w"] @ (matrix + matrix.T)}) < 1e-13


def test_a_gradient_that_is_none_of_a_scalar_is_refused_where_a_hessian_is_taken_for_symmetric(
    problem_with: Callable[..., Problem],
) -> None:
    class Wrong(torch.autograd.Function):
        """w^2 elementwise, whose gradient is [2 w_1, 2 w_2, ...] with w_1 in place of the w_0 of the first element."""

        @staticmethod
        def forward(ctx: Any, w: Tensor) -> Tensor:
            ctx.save_for_backward(w)
            return w**2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (w,) = ctx.saved_tensors
            return 2 * torch.cat([w[1:2], w[1:]]) * grad

    problem = replace(problem_with(Wrong.apply), optimizer=SGD(momentum=0.5))
    for engine in ("reverse_over_reverse", "reverse_over_reverse_loop"):
        with pytest.raises(UsageError, match=rf"engine {engine}: off by .*Functions that are not torch's: Wrong"):
            hypergradient(problem, HYPER, Forward(engine=engine))
    want = hypergradient(problem, HYPER, Forward(engine="program")).grad
    for mode in (Forward(), Reverse(), Reverse(slots=1), Reversible()):
        torch.testing.assert_close(hypergradient(problem, HYPER, mode).grad, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", [Reverse(), Reverse(slots=1), Reversible()], ids=repr)
def test_a_second_derivative_that_is_left_out_is_taken_from_the_operators_by_modes_that_sweep_back(
    mode: Any, problem_with: Callable[..., Problem]
) -> None:
    known = Measurements()

    class Once(torch.autograd.Function):
        """w^3, whose gradient is taken for a constant by whoever differentiates it."""

        @staticmethod
        def forward(ctx: Any, w: Tensor) -> Tensor:
            ctx.save_for_backward(w)
            return w**3

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (w,) = ctx.saved_tensors
            return (3 * w**2 * grad).detach()

    mixed = lambda function: lambda w: function(w[:2]) * w[2:]  # noqa: E731
    want = hypergradient(problem_with(mixed(lambda w: w**3)), HYPER, mode, measurements=known).grad
    got = hypergradient(problem_with(mixed(Once.apply)), HYPER, mode, measurements=known)
    torch.testing.assert_close(got.grad, want, rtol=1e-9, atol=1e-12)
    assert "list of operators" in got.stats["checks"]


@pytest.mark.parametrize(
    "mode", [Forward(), *(Forward(engine=name) for name in ENGINES), Reverse(), Reversible()], ids=repr
)
def test_a_gradient_that_is_put_to_zero_on_purpose_is_differentiated_as_training_has_it(mode: Any) -> None:
    """The row of the padding is read and never moved: a row of zeros in the gradient's Jacobian, and no such column."""
    known = Measurements()
    table = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(params: Params, hyper: Any, batch: Any) -> Tensor:
        rows = torch.nn.functional.embedding(torch.tensor([0, 1, 2, 1, 3]), params["w"], padding_idx=0)
        return (rows @ rows.T).sin().sum()

    decayed = {**HYPER, "weight_decay": torch.tensor(0.1, dtype=F64)}  # which moves the padding too
    problem = Problem({"w": table}, loss, lambda p, h: p["w"].pow(3).sum(), lambda t: None, SGD(), steps=3)
    want = differences(lambda hyper: value_of("sgd", problem, hyper), decayed)
    cut = mode in (Forward(engine="reverse_over_reverse"), Forward(engine="reverse_over_reverse_loop"))
    if cut or mode == Forward(engine="dense"):
        with pytest.raises(UsageError, match="off by"):
            hypergradient(problem, decayed, mode, measurements=known)
    else:
        torch.testing.assert_close(
            hypergradient(problem, decayed, mode, measurements=known).grad, want, rtol=1e-6, atol=1e-9
        )


def adapted(by: Callable[[Tensor], Tensor]) -> Problem:
    """A branch behind a scale that starts at zero, as adapters do: what lies in it has no gradient there."""
    start = {**normalised(torch.tanh).initial({}), "scale": torch.zeros(6, dtype=F64)}
    start["v"] = 1 + start["w"]
    targets = torch.arange(9) % 6

    def loss(params: Params, *rest: Any) -> Tensor:
        logits = X @ params["w"].T + params["scale"] * by(X @ params["v"].T)
        return functional.cross_entropy(logits, targets)

    return Problem(start, loss, loss, lambda t: None, SGD(), 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_branch_without_a_gradient_at_the_start_is_no_asymmetry(engine: str) -> None:
    problem = adapted(NORMALISED["layer norm"])
    want = hypergradient(problem, HYPER, "reverse").grad
    torch.testing.assert_close(hypergradient(problem, HYPER, Forward(engine=engine)).grad, want, rtol=1e-10, atol=1e-8)


def test_where_nothing_is_finite_a_little_away_the_start_is_taken() -> None:
    def loss(params: Params, *rest: Any) -> Tensor:
        return (params["a"] - 1) ** 2 + (1 - 1e6 * params["b"].abs()).log()

    start = {"a": torch.tensor(2.0, dtype=F64), "b": torch.tensor(0.0, dtype=F64)}
    problem = Problem(start, loss, loss, lambda t: None, SGD(), 3)
    got = hypergradient(problem, HYPER, Forward(engine="forward_over_reverse"))
    torch.testing.assert_close(got.grad, hypergradient(problem, HYPER, "reverse").grad)

    def wrong(loss: Any, params: Params, *rest: Any) -> Any:
        out = ENGINES["reverse_over_reverse_loop"](loss, params, *rest)
        return out._replace(grads={name: 1.1 * g for name, g in out.grads.items()})

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(ENGINES, "dense", wrong)
        with pytest.raises(UsageError, match="engine dense: its gradient differs"):
            hypergradient(problem, HYPER, Forward(engine="dense"))


def test_an_engine_that_trains_another_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products are exact and symmetric, of a loss with other random numbers."""
    right = ENGINES["reverse_over_reverse_loop"]

    def strays(loss: Any, *rest: Any) -> Any:
        return right(lambda params, hyper: loss({name: 1.01 * w for name, w in params.items()}, hyper), *rest)

    monkeypatch.setitem(ENGINES, "dense", strays)
    with pytest.raises(UsageError, match="engine dense: its gradient differs from that of plain training by"):
        hypergradient(normalised(torch.tanh), HYPER, Forward(engine="dense"))


def test_the_probe_moves_no_generator_and_counts_for_nothing() -> None:
    before = torch.get_rng_state()
    got = hypergradient(normalised(torch.tanh), HYPER, Forward(engine="forward_over_reverse"))
    assert torch.equal(torch.get_rng_state(), before)
    assert (got.stats["num_hvps"], got.stats["num_gradients"]) == (2 * 3, 3)
