"""Compiled against eager: numbers that are only rounding do not count, and whatever else is wrong is refused.

In place of the compiler torch runs the operators, on arguments moved by their last bit: it rounds otherwise.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional

from hyperopt_cli import Forward, Problem, Reverse, hypergradient
from hyperopt_cli.errors import VerificationError
from hyperopt_cli.models import batch_norm
from hyperopt_cli.optimizers import SGD, Adam, AdamW, RMSprop
from hyperopt_cli.optimizers.base import InnerOptimizer
from hyperopt_cli.program import compiled_step
from hyperopt_cli.program.comparing import check, drawn_like, moved
from hyperopt_cli.program.compiled_step import CompiledStep

F64 = torch.float64
Spoil = Callable[[list[Tensor]], list[Tensor]]


class Attention(nn.Module):
    """Softmax over the keys cancels their bias: its gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return out


def normalised(norm: nn.Module) -> nn.Module:
    """The bias before a normalisation has no effect."""
    layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), norm, nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)
    return nn.Sequential(*layers)


class Shared(nn.Module):
    """One number that is added to all logits."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.shift = nn.Linear(20, 3), nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x.flatten(1)) + self.shift
        return out


NETS: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "softmax regression": lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 3)),
    "a bias before batch norm": lambda: normalised(nn.BatchNorm1d(5)),
    "a bias before layer norm": lambda: normalised(nn.LayerNorm(6)),
    "a shift of all logits": Shared,
}
OPTIMIZERS: dict[str, InnerOptimizer] = {
    "sgd": SGD(),
    "adam": Adam(),
    "adamw": AdamW(),
    "rmsprop": RMSprop(eps=1e-10),
    "rmsprop centred": RMSprop(centered=True, momentum=0.5),
}
TABLE = [
    *((net, "adam", F64) for net in NETS),
    *((net, "sgd", F64) for net in ("softmax regression", "attention")),
    *(("attention", optimizer, F64) for optimizer in ("adamw", "rmsprop", "rmsprop centred")),
    *(("attention", optimizer, torch.float32) for optimizer in ("adam", "adamw")),
    ("softmax regression", "sgd", torch.float32),
]


def problem_of(net: str, optimizer: str, dtype: torch.dtype) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETS[net]().to(dtype).train()
        x, y = torch.randn(6, 5, 4).to(dtype), torch.randint(0, 3, (6,))
    batch_norm.use_batch_statistics(model)

    def loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        return functional.cross_entropy(functional_call(model, params, (x,)), y)

    init = {name: w.detach() for name, w in model.named_parameters()}
    return Problem(init, loss, lambda p, h: loss(p, h, None), lambda t: None, OPTIMIZERS[optimizer], 2)


def compiles_to(monkeypatch: pytest.MonkeyPatch, spoil: Spoil = lambda results: results, last: bool = False) -> None:
    """In place of the compiler: the operators on moved arguments; the results of all builds spoilt, or of the last."""
    builds = []

    def build(graph: fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any]:
        builds.append(graph)
        generator, spoils = torch.Generator().manual_seed(5), not last or len(builds) == 2

        def run(*given: Tensor) -> list[Tensor]:
            results = list(graph(*(moved(x, generator) for x in given)))
            return spoil(results) if spoils else results

        return run

    monkeypatch.setattr(CompiledStep, "_build", staticmethod(build))
    monkeypatch.setattr(compiled_step, "cannot_compile", lambda: None)


@pytest.mark.parametrize(("net", "optimizer", "dtype"), TABLE)
def test_other_rounding_is_no_other_result(
    net: str, optimizer: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles_to(monkeypatch)
    problem, hyper = problem_of(net, optimizer, dtype), {"lr": torch.tensor(0.01, dtype=F64)}
    got, plain = (hypergradient(problem, hyper, Reverse(compile=compile)) for compile in (True, False))
    torch.testing.assert_close(got.grad, plain.grad, rtol=1e-8 if dtype == F64 else 1e-3, atol=0)


def test_so_it_is_in_forward_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    compiles_to(monkeypatch)
    problem, hyper = problem_of("attention", "adam", F64), {"lr": torch.tensor(0.01, dtype=F64)}
    modes = (Forward(engine="reverse_over_reverse_loop", compile=compile) for compile in (True, False))
    got, plain = (hypergradient(problem, hyper, mode) for mode in modes)
    torch.testing.assert_close(got.grad, plain.grad, rtol=1e-8, atol=0)


def largest(results: list[Tensor]) -> int:
    """Of those with more than a few numbers, that of least norm that is not all rounding: of the way back, one of w."""
    return max(range(len(results)), key=lambda i: (results[i].numel(), i))


def on(which: Callable[[list[Tensor]], int], change: Callable[[Tensor], Tensor]) -> Spoil:
    def spoil(results: list[Tensor]) -> list[Tensor]:
        at = which(results)
        return [change(x) if i == at else x for i, x in enumerate(results)]

    return spoil


def _first_changed(x: Tensor, by: float) -> Tensor:
    flat = x.flatten().clone()
    flat[0] = flat[0] + by
    return flat.reshape(x.shape)


WRONG: dict[str, Spoil] = {
    "all by 1e-6": lambda results: [x * (1 + 1e-6) for x in results],
    "one by 1e-6": on(largest, lambda x: x * (1 + 1e-6)),
    "one is zero": on(largest, torch.zeros_like),
    "one has another sign": on(largest, torch.neg),
    "one number is not finite": on(largest, lambda x: _first_changed(x, float("nan"))),
    "one is infinite": on(largest, lambda x: torch.full_like(x, float("inf"))),
    "its numbers are in another order": on(largest, lambda x: x.flip(0)),
    "the first result": on(lambda results: 0, lambda x: x * (1 + 1e-5)),
    "the last result": on(lambda results: len(results) - 1, lambda x: x * (1 + 1e-5)),
}


@pytest.mark.parametrize("last", [False, True], ids=["on both ways", "on the way back alone"])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(("net", "optimizer"), [("attention", "adam"), ("softmax regression", "sgd")])
def test_a_wrong_result_is_refused_beside_numbers_that_are_rounding(
    net: str, optimizer: str, name: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles_to(monkeypatch, WRONG[name], last)
    hyper = {"lr": torch.tensor(0.01, dtype=F64)}
    with pytest.raises(VerificationError, match=r"compiled step differs .* by .*; set compile: false"):
        hypergradient(problem_of(net, optimizer, F64), hyper, Reverse(compile=True))


# --- the comparison itself ---

BASE = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=F64)


def eager_with(noise: Callable[[torch.Generator], Tensor]) -> Callable[[torch.Generator | None], list[Tensor]]:
    """`BASE` to its last bits, and other numbers that are drawn anew in each run."""
    first = torch.Generator().manual_seed(1)

    def eager(generator: torch.Generator | None) -> list[Tensor]:
        if generator is None:
            return [BASE, noise(first)]
        return [moved(BASE * 1.1, generator) / 1.1, noise(generator)]

    return eager


def signs(generator: torch.Generator) -> Tensor:
    """What Adam makes of gradients that are zero in truth."""
    return 1e13 * (torch.randint(0, 2, (5,), generator=generator, dtype=F64) * 2 - 1)


NOISE = eager_with(signs)
OTHER_SIGNS = 1e13 * torch.tensor([1.0, -1, 1, -1, 0], dtype=F64)
REFUSED: dict[str, tuple[Tensor, Tensor]] = {
    "wrong by 1e-6": (BASE * (1 + 1e-6), OTHER_SIGNS),
    "one number": (_first_changed(BASE, 1e-7), OTHER_SIGNS),
    "larger than any rounding": (BASE, OTHER_SIGNS * 1e3),
    "not a number where the rest is rounding": (BASE, _first_changed(OTHER_SIGNS, float("nan"))),
}


@pytest.mark.parametrize("result", [OTHER_SIGNS, torch.zeros(5, dtype=F64), -OTHER_SIGNS])
def test_the_sign_of_rounding_does_not_count(result: Tensor) -> None:
    check([BASE, result], NOISE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_by_more_is_refused(name: str) -> None:
    with pytest.raises(VerificationError, match="differs"):
        check(list(REFUSED[name]), NOISE)


@pytest.mark.parametrize("wrong", [1e-6, 1e-3, 5.0])
def test_a_zero_that_is_no_rounding_counts_beside_huge_ones(wrong: float) -> None:
    def eager(generator: torch.Generator | None) -> list[Tensor]:
        rounding = 0.0 if generator is None else float(torch.randn(1, generator=generator))
        return [BASE, torch.full((3,), 1e-18 * rounding, dtype=F64)]

    check([BASE, torch.full((3,), 5e-18, dtype=F64)], eager)
    with pytest.raises(VerificationError, match="differs"):
        check([BASE, torch.full((3,), wrong, dtype=F64)], eager)


def test_whole_numbers_integers_and_flags_are_not_moved() -> None:
    x = torch.tensor([0.0, 1.0, -3.0, 0.25], dtype=F64, requires_grad=True)
    near = moved(x, torch.Generator().manual_seed(0))
    assert torch.equal(near[:3], x[:3])
    assert 0 < float((near[3] - x[3]).detach().abs()) <= 0.25 * torch.finfo(F64).eps
    assert near.requires_grad
    for kept in (torch.tensor([1, 2]), torch.tensor([True]), 3, "a", None):
        assert moved(kept, torch.Generator()) is kept


def test_what_is_drawn_lies_as_what_it_stands_for() -> None:
    x = {"a": torch.zeros(3, 4).T, "b": torch.arange(3), "c": None}
    made = drawn_like(x)
    assert made["a"].stride() == x["a"].stride()
    assert float(made["a"].abs().min()) > 0
    assert made["b"] is x["b"]
    assert torch.equal(made["a"], drawn_like(x)["a"])
