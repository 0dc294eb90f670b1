"""The training gradient is no gradient of a scalar, or autograd is cut: right in every exact mode, or refused.

Truth is what training does: central differences of a plain first-order run.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hyperopt_cli import Forward, Problem, Reverse, Reversible, hypergradient
from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.optimizers import SGD
from tests.checks.training import F64, HYPER, error, truth

MODES = {
    "forward": Forward(compile=False),
    "reverse": Reverse(compile=False),
    "two slots": Reverse(slots=2, compile=False),
    "reversible": Reversible(compile=False),
}
STEPS = 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, Y = drawn(20, 4, seed=1), torch.arange(20) % 3
INDEX = torch.arange(40).reshape(10, 4) % 7
START = {"f": 0.5 * drawn(4, 6, seed=2), "c": 0.5 * drawn(6, 3, seed=3)}
EYE = torch.eye(4, dtype=F64)


class Reversed(torch.autograd.Function):
    """The identity, with a gradient of the other sign (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -0.5 * g


class Kept(torch.autograd.Function):
    """Keeps a value on ctx, which a double backward takes for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.s = torch.sigmoid(x)
        ctx.save_for_backward(x)
        return x * ctx.s

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (ctx.s + x * ctx.s * (1 - ctx.s))


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Clipped(torch.autograd.Function):
    """A backward that is not that of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.tanh(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * g


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.from_numpy(np.cos(x.detach().numpy()))


def fit(z: Tensor, p: Any, rows: slice) -> Tensor:
    return F.cross_entropy(z @ p["c"], Y[rows])


def hidden(p: Any, rows: slice) -> Tensor:
    return torch.tanh(X[rows] @ p["f"])


def siamese(p: Any, h: Any, rows: slice) -> Tensor:
    one, other = hidden(p, rows), torch.tanh((X[rows] + 0.1 * X[rows].flip(0)) @ p["f"])
    return fit(one, p, rows) - F.cosine_similarity(one**2, other.detach()).mean()


def teacher(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    with torch.no_grad():
        target = (2 * z @ p["c"]).softmax(1)
    return fit(z, p, rows) + F.kl_div((z @ p["c"]).log_softmax(1), target, reduction="batchmean")


def normalised(p: Any, h: Any, rows: slice) -> Tensor:
    z = X[rows] @ p["f"]
    with torch.no_grad():
        mean, deviation = z.mean(0), z.std(0)
    return fit(torch.tanh((z - mean) / deviation), p, rows)


def adversarial(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    return fit(z, p, rows) + (Reversed.apply(z) ** 3).mean()


def hooked(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    side = z * 1.0
    side.register_hook(lambda g: -0.7 * g)
    return fit(z, p, rows) + (side**3).mean()


def clipped_by_a_hook(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows) * 1.0
    z.register_hook(lambda g: g / (1 + g.norm()))
    return fit(z, p, rows)


def clipped_by_a_hook_of_a_node(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows) * 1.0
    z.grad_fn.register_hook(lambda into, out: tuple(None if g is None else g.clamp(-0.02, 0.02) for g in into))
    return fit(z, p, rows)


def hooked_before_a_node(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows) * 1.0
    z.grad_fn.register_prehook(lambda out: tuple(g / (1 + g.norm()) for g in out))
    return fit(z, p, rows)


def repeated(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    at = torch.tensor([0, 0, 2, 2, 1])
    z = z.clone()
    z[at] += z[at]
    return fit(z, p, rows) + (z**2).mean()


def repeated_scatter(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    at = (torch.arange(60) % 3).reshape(10, 6)
    return fit(z, p, rows) + (z.new_zeros(10, 6).scatter(0, at, z**2) ** 2).mean()


def written_through_views(p: Any, h: Any, rows: slice) -> Tensor:
    y = hidden(p, rows)
    z = y.clone()
    z[:, 0] = y[:, 1].detach() * y[:, 2]
    z[1] *= 3
    return fit(z, p, rows)


def padded(p: Any, h: Any, rows: slice) -> Tensor:
    z = torch.tanh(F.embedding(INDEX, p["table"], padding_idx=0)).mean(1)
    return fit(z, p, slice(0, 10)) + 0.01 * (p["table"] ** 2).sum()


def bagged(mode: str) -> Any:
    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        z = torch.tanh(F.embedding_bag(INDEX, p["table"], mode=mode, padding_idx=0))
        return fit(z, p, slice(0, 10)) + 0.01 * (p["table"] ** 2).sum()

    return loss


def bags_of_weights(mode: str) -> Any:
    """Bags of one to three examples and an empty one, with weights that follow a parameter where they are summed."""

    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        weights = torch.tanh(p["table"][INDEX.flatten(), 0]) if mode == "sum" else None
        starts = torch.tensor([0, 1, 1, 4, *range(5, 35, 5)])
        z = F.embedding_bag(INDEX.flatten(), p["table"], starts, mode=mode, per_sample_weights=weights)
        return fit(torch.tanh(z), p, slice(0, 10)) + (p["table"].detach() * p["table"] ** 2).sum() / 20

    return loss


def dropped_into_a_buffer(p: Any, h: Any, rows: slice) -> Tensor:
    """As a GPU drops."""
    torch.manual_seed(rows.start)
    z = torch.zeros(10, 6, dtype=F64)
    z[:, :3] = torch.native_dropout(hidden(p, rows)[:, :3], 0.3, True)[0]
    z[:, 3:] = torch.native_dropout(hidden(p, rows)[:, 3:], 0.3, False)[0]
    return fit(z, p, rows) + (z.detach() * z**2).mean()


def leaky_at_random(p: Any, h: Any, rows: slice) -> Tensor:
    torch.manual_seed(rows.start)
    z = F.rrelu(hidden(p, rows), 0.1, 0.5, training=True)
    return fit(z, p, rows) + (z.detach() * z**2).mean()


def number_copied(p: Any, h: Any, rows: slice) -> Tensor:
    scale = torch.tensor(1.0, dtype=F64).index_copy(0, torch.tensor([0]), p["f"].norm().detach() * p["f"].norm())
    return fit(hidden(p, rows), p, rows) * (1 + scale)


def weight_norm(p: Any, h: Any, rows: slice) -> Tensor:
    z = F.normalize(hidden(p, rows), dim=1)
    return F.cross_entropy(z @ torch._weight_norm(p["c"].T, p["g"], 0).T, Y[rows])


def rounded(p: Any, h: Any, rows: slice) -> Tensor:
    return fit(hidden({"f": Rounded.apply(p["f"])}, rows), p, rows) + 0.1 * (p["f"] ** 2).sum()


def quantised(p: Any, h: Any, rows: slice) -> Tensor:
    f = p["f"] + ((8 * p["f"]).round() / 8 - p["f"]).detach()
    return fit(hidden({"f": f}, rows), p, rows) + 0.1 * (p["f"] ** 3).sum()


def checkpointed(p: Any, h: Any, rows: slice) -> Tensor:
    inside = checkpoint(lambda f: torch.tanh(X[rows] @ f.detach() + X[rows] @ f), p["f"], use_reentrant=False)
    return fit(inside, p, rows)


def dropped(p: Any, h: Any, rows: slice) -> Tensor:
    torch.manual_seed(rows.start)
    z = F.dropout(hidden(p, rows), 0.3)
    return fit(z, p, rows) + (z.detach() * z**2).mean()


def dropped_by_a_generator(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    mask = torch.rand(z.shape, generator=torch.Generator().manual_seed(rows.start), dtype=F64) > 0.3
    return fit(z * mask, p, rows) + (z.detach() * mask * z**2).mean()


def late_branch(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    return siamese(p, h, rows) if rows.start % 4 == 3 else fit(z, p, rows)


def branch_by_a_tensor(p: Any, h: Any, rows: slice) -> Tensor:
    return teacher(p, h, rows) if torch.tensor(rows.start) >= 2 else fit(hidden(p, rows), p, rows)


def of_square(of: Any) -> Any:
    """A matrix function of f f^T + I, cut by a detach so that a double backward is wrong."""

    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        matrix = p["f"] @ p["f"].T + EYE
        return fit(hidden(p, rows), p, rows) + 0.05 * of(matrix, p) + 0.05 * (p["f"].detach() * p["f"] ** 2).sum()

    return loss


RIGHT: dict[str, Any] = {
    "a stop-gradient between two views": siamese,
    "a teacher without gradient": teacher,
    "statistics without gradient": normalised,
    "gradient reversal": adversarial,
    "a hook that reverses": hooked,
    "a hook that clips": clipped_by_a_hook,
    "a hook of a node that clips": clipped_by_a_hook_of_a_node,
    "a hook before a node": hooked_before_a_node,
    "a value on ctx": lambda p, h, rows: fit(Kept.apply(X[rows] @ p["f"]), p, rows),
    "a backward of its own": lambda p, h, rows: fit(Clipped.apply(X[rows] @ p["f"]), p, rows),
    "once differentiable": lambda p, h, rows: fit(Once.apply(hidden(p, rows)), p, rows),
    "indices that repeat": repeated,
    "a scatter whose indices repeat": repeated_scatter,
    "views that are written": written_through_views,
    "an embedding's padding": padded,
    "weight normalisation": weight_norm,
    "a bag of embeddings, summed": bagged("sum"),
    "a bag of embeddings, averaged": bagged("mean"),
    "a bag of embeddings, its maximum": bagged("max"),
    "a bag of weighted embeddings, summed": bags_of_weights("sum"),
    "a bag of embeddings beside an empty one, averaged": bags_of_weights("mean"),
    "a bag of embeddings beside an empty one, its maximum": bags_of_weights("max"),
    "dropout into a buffer": dropped_into_a_buffer,
    "a leaky rectifier with random slopes": leaky_at_random,
    "a number that is copied": number_copied,
    "a straight-through estimator": rounded,
    "a straight-through estimator by detach": quantised,
    "a checkpoint around a detach": checkpointed,
    "dropout by a seed": dropped,
    "dropout by a generator": dropped_by_a_generator,
    "a branch of a later step": late_branch,
    "a branch by a tensor": branch_by_a_tensor,
    "slogdet": of_square(lambda m, p: torch.linalg.slogdet(m)[1]),
    "logdet": of_square(lambda m, p: torch.logdet(m)),
    "det": of_square(lambda m, p: torch.linalg.det(m)),
    "solve": of_square(lambda m, p: torch.linalg.solve(m, p["f"]).square().sum()),
    "solve from the right": of_square(lambda m, p: torch.linalg.solve(m, p["f"].T, left=False).square().sum()),
    "solve for a vector": of_square(lambda m, p: torch.linalg.solve(m, p["f"][:, 0]).square().sum()),
    "the inverse": of_square(lambda m, p: torch.linalg.inv(m).square().sum()),
    "the inverse by Cholesky": of_square(lambda m, p: torch.cholesky_inverse(torch.linalg.cholesky(m)).square().sum()),
    "a solution by Cholesky": of_square(
        lambda m, p: torch.cholesky_solve(p["f"], torch.linalg.cholesky(m)).square().sum()
    ),
    "layer normalisation": of_square(lambda m, p: F.layer_norm(m, (4,)).pow(3).sum()),
    "group normalisation": of_square(lambda m, p: F.group_norm(m, 2).pow(3).sum()),
    "batch normalisation": of_square(lambda m, p: F.batch_norm(m, None, None, training=True).pow(3).sum()),
    "mish, hardsigmoid, gelu": of_square(lambda m, p: (F.mish(m) + F.hardsigmoid(m) + F.gelu(m)).sum()),
    "attention": of_square(lambda m, p: F.scaled_dot_product_attention(m[None], m[None], m[None]).sum()),
}
START_OF = {
    loss: {"table": drawn(7, 6, seed=5), "c": START["c"]}
    for loss in (padded, *(bag for name, bag in RIGHT.items() if "bag" in name))
} | {
    weight_norm: {**START, "g": torch.ones(3, 1, dtype=F64)},
}


def outer(p: Any, h: Any) -> Tensor:
    return sum(((x - 0.1) ** 2).sum() for x in p.values())


def batch(t: int) -> slice:
    return slice(t, t + 10)


def problem_of(loss: Any) -> Problem:
    return Problem(START_OF.get(loss, START), loss, outer, batch, SGD(), STEPS)


@pytest.mark.parametrize("name", RIGHT)
def test_every_exact_mode_has_the_derivative_of_the_training_run(name: str) -> None:
    loss = RIGHT[name]
    problem = problem_of(loss)
    want = truth(problem.init, loss, outer, batch, STEPS)  # type: ignore[arg-type]
    for mode in MODES.values():
        assert error(hypergradient(problem, HYPER, mode).grad, want) < 1e-6, mode


def product_of_repeated(p: Any, h: Any, rows: slice) -> Tensor:
    z = hidden(p, rows)
    at = (torch.arange(60) % 3).reshape(10, 6)
    made = z.new_zeros(3, 6).scatter_reduce(0, at, z + 2, "prod", include_self=False)
    return fit(z, p, rows) + 0.01 * (made.detach() * made).mean()


def counted(share: float = 0.1, after: int = 12) -> Any:
    calls = [0]

    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        calls[0] += 1
        return fit(hidden(p, rows), p, rows) * (1 + share * (calls[0] > after))

    return loss


class Counter:
    """Draws that nobody seeds, from step 2 on."""

    def __init__(self) -> None:
        self.drawn = np.random.default_rng(0)

    def __call__(self, p: Any, h: Any, rows: slice) -> Tensor:
        noise = self.drawn.normal() if rows.start >= 2 else 0.0
        return fit(hidden(p, rows), p, rows) + noise * (p["f"] ** 2).sum()


REFUSED: dict[str, Any] = {
    "through numpy": lambda: lambda p, h, rows: fit(ByNumpy.apply(X[rows] @ p["f"]), p, rows),
    "an item of what moves": lambda: lambda p, h, rows: fit(hidden(p, rows), p, rows) * p["f"].abs().sum().item(),
    "an item from a later step on": lambda: (
        lambda p, h, rows: fit(hidden(p, rows), p, rows) * (p["f"].abs().sum().item() if rows.start >= 3 else 1.0)
    ),
    "numpy statistics": lambda: (
        lambda p, h, rows: fit(hidden(p, rows), p, rows) + (p["f"] ** 2).sum() * float(np.std(p["f"].detach().numpy()))
    ),
    "a list of numbers": lambda: (
        lambda p, h, rows: (
            fit(hidden(p, rows), p, rows) + (p["c"] * torch.tensor(p["c"].detach().tolist(), dtype=F64)).sum()
        )
    ),
    "a counter in a closure": counted,
    "a counter that hardly shows": lambda: counted(7e-8, 3),
    "draws without a seed from a later step on": Counter,
    "torch's own draws": lambda: lambda p, h, rows: fit(F.dropout(hidden(p, rows), 0.3), p, rows),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_derivative_is_refused_before_a_number_is_shown(name: str, mode: str) -> None:
    with pytest.raises((UsageError, VerificationError)):
        hypergradient(problem_of(REFUSED[name]()), HYPER, MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_lower_format_in_a_run_in_float64_is_named(mode: str) -> None:
    def lowered(p: Any, h: Any, rows: slice) -> Tensor:
        z = torch.tanh(X[rows].bfloat16() @ p["f"].bfloat16())
        return fit(z.double(), p, rows)

    with pytest.raises(UsageError, match="the rounding of what is in bfloat16: use float32"):
        hypergradient(problem_of(lowered), HYPER, MODES[mode])


def test_a_product_whose_forward_derivative_torch_has_wrong_is_right_or_refused() -> None:
    want = truth(START, product_of_repeated, outer, batch, STEPS)
    right = 0
    for mode in MODES.values():
        try:
            got = hypergradient(problem_of(product_of_repeated), HYPER, mode).grad
        except UsageError:
            continue
        assert error(got, want) < 1e-6
        right += 1
    assert right


def test_weight_decay_of_a_padded_embedding() -> None:
    """The padding is decayed and read, and has no gradient of its own."""
    hyper = {"lr": HYPER["lr"], "momentum": HYPER["momentum"], "weight_decay": torch.tensor(0.05, dtype=F64)}

    def value(decay: float) -> float:
        decayed = lambda p, h, rows: padded(p, h, rows) + decay / 2 * ((p["table"] ** 2).sum() + (p["c"] ** 2).sum())  # noqa: E731
        return truth_of_value(decayed)

    def truth_of_value(loss: Any) -> float:
        from tests.checks.training import trained

        return float(outer(trained(START_OF[padded], loss, batch, STEPS, HYPER), {}))

    want = (value(0.05 + 1e-5) - value(0.05 - 1e-5)) / 2e-5
    for mode in MODES.values():
        assert float(hypergradient(problem_of(padded), hyper, mode).grad["weight_decay"]) == pytest.approx(want, 1e-6)


@pytest.mark.parametrize("first", [0, 3])
def test_a_late_branch_beside_a_hyperparameter_of_the_loss(first: int) -> None:
    """Kinds are told apart by graphs, which have more nodes where lambda is differentiated too."""

    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        penalty = h["l2"] * sum((x**2).sum() for x in p.values())
        cut = siamese(p, h, rows) if rows.start >= first else fit(hidden(p, rows), p, rows)
        return cut + penalty

    hyper = {**HYPER, "l2": torch.tensor(0.03, dtype=F64)}
    want = truth(START, loss, outer, batch, STEPS, hyper)
    problem = Problem(START, loss, outer, batch, SGD(), STEPS)
    for mode in MODES.values():
        assert error(hypergradient(problem, hyper, mode).grad, want) < 1e-6, mode


def test_the_module_of_weight_norm_trains_and_is_differentiated() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)).double()
    start = {name: x.detach().clone() for name, x in net.named_parameters()}

    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        return F.cross_entropy(functional_call(net, p, (X[rows],)), Y[rows])

    want = truth(start, loss, outer, batch, STEPS)
    problem = Problem(start, loss, outer, batch, SGD(), STEPS)
    for mode in MODES.values():
        assert error(hypergradient(problem, HYPER, mode).grad, want) < 1e-6


def test_single_precision_is_judged_in_float64() -> None:
    """Below float64 an asymmetry of five percent would pass for rounding."""
    low = {name: x.float() for name, x in START.items()}
    low_loss = lambda p, h, rows: siamese(p, h, rows).float()  # noqa: E731

    def loss(p: Any, h: Any, rows: slice) -> Tensor:
        z = torch.tanh(X.float()[rows] @ p["f"])
        other = torch.tanh((X.float()[rows] + 0.1 * X.float()[rows].flip(0)) @ p["f"])
        return F.cross_entropy(z @ p["c"], Y[rows]) - F.cosine_similarity(z**2, other.detach()).mean()

    want = truth(START, siamese, outer, batch, STEPS)
    assert low_loss(START, {}, batch(0)).dtype == torch.float32
    for mode in MODES.values():
        got = hypergradient(Problem(low, loss, outer, batch, SGD(), STEPS), HYPER, mode)
        assert error(got.grad, want) < 1e-3


def small(p: Any, rows: slice, dtype: torch.dtype, is_cut: bool, is_low: bool) -> Tensor:
    """A small network; where `is_low`, it takes float32 alone."""
    if is_low and any(x.dtype != torch.float32 for x in p.values()):
        raise TypeError("a kernel of one's own, for float32 alone")
    drawn = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=drawn), torch.randn(60, generator=drawn)
    z = torch.tanh(x.to(dtype)[rows] @ p["w"])
    if is_cut:
        z = z * (1 + z.detach().square().mean(0))
    out: Tensor = (z @ p["v"] - y.to(dtype)[rows]).square().mean()
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_cut", [False, True], ids=["plain", "cut"])
@pytest.mark.parametrize("where", ["training", "validation"])
def test_what_takes_float32_alone_is_judged_in_it(where: str, is_cut: bool, mode: str) -> None:
    drawn = torch.Generator().manual_seed(1)
    start = {"w": torch.randn(4, 3, generator=drawn), "v": torch.randn(3, generator=drawn)}

    def found(dtype: torch.dtype, is_low: bool, how: Any) -> Any:
        of_loss, of_end = (is_low and where == each for each in ("training", "validation"))
        inner = lambda p, h, rows: small(p, rows, dtype, is_cut and where == "training", of_loss)  # noqa: E731
        end = lambda p, h: small(p, slice(None), dtype, is_cut and where == "validation", of_end)  # noqa: E731
        params = {name: x.to(dtype) for name, x in start.items()}
        return hypergradient(Problem(params, inner, end, batch, SGD(), 3), HYPER, how)

    got, want = found(torch.float32, True, MODES[mode]), found(torch.float64, False, "reverse")
    assert error(got.grad, {name: float(x) for name, x in want.grad.items()}) < 2e-5
