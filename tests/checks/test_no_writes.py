"""A loss that leaves something behind, or differentiates once only, is refused; one that writes into its own is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional

from hyperopt_cli import Problem, hypergradient
from hyperopt_cli.errors import UsageError
from hyperopt_cli.models import batch_norm
from hyperopt_cli.optimizers import SGD

F64 = torch.float64
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
HYPER = {"lr": torch.tensor(0.1, dtype=F64)}


def of_module(module: nn.Module) -> Problem:
    module = nn.Sequential(nn.Linear(3, 4), module, nn.Linear(4, 1)).to(F64).train()
    start = {name: w.detach() for name, w in module.named_parameters()}

    def loss(params: Any, *rest: Any) -> Tensor:
        out: Tensor = functional_call(module, params, (X,))
        return out.square().mean()

    return Problem(start, loss, loss, lambda t: None, SGD(), steps=2)


def of_loss(loss: Callable[[Tensor], Tensor]) -> Problem:
    def each(params: Any, *rest: Any) -> Tensor:
        return loss(X @ params["w"])

    return Problem({"w": torch.ones(3, dtype=F64)}, each, each, lambda t: None, SGD(), steps=2)


COUNT, MEAN, VAR = torch.zeros((), dtype=F64), torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)


def normalised(z: Tensor) -> Tensor:
    return functional.batch_norm(z[:, None] * X, MEAN, VAR, training=True).pow(2).mul(z[:, None]).sum()


WRITING = {
    "a batch norm with running statistics": (lambda: of_module(nn.BatchNorm1d(4)), "aten.add_"),
    "a batch norm of one's own": (lambda: of_loss(normalised), "batch_norm"),
    "a spectral norm": (lambda: of_module(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))), "aten"),
    "a counter": (lambda: of_loss(lambda z: z.square().sum() + 0 * COUNT.add_(1)), "aten.add_"),
    "a result that is kept": (
        lambda: of_loss(lambda z: torch.sum(z.detach(), dim=0, out=COUNT) * 0 + z.sum() ** 2),
        "out",
    ),
}


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
@pytest.mark.parametrize("name", WRITING)
def test_a_loss_that_leaves_something_behind_is_refused(name: str, mode: str) -> None:
    make, said = WRITING[name]
    with pytest.raises(UsageError, match=rf"inner_loss: .*{said}.* writes into a tensor .* that was there before"):
        hypergradient(make(), HYPER, mode)


class Once(torch.autograd.Function):
    """sin, whose derivative torch lets nobody differentiate; on the way to w alone it says nothing of that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


@pytest.mark.parametrize("mode", ["forward", "reverse", "reversible"])
def test_a_function_that_is_differentiable_once_is_differentiated_as_operators(mode: str) -> None:
    once = of_loss(lambda z: (Once.apply(z) - 1).square().mean())
    twice = of_loss(lambda z: (z.sin() - 1).square().mean())
    hyper = {**HYPER, "momentum": torch.tensor(0.5, dtype=F64)}
    got, want = (hypergradient(problem, hyper, mode).grad for problem in (once, twice))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def _own(z: Tensor) -> Tensor:
    y = z * 2
    y[0] = 3.0
    y.view(2, 3).mul_(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    table = torch.tensor([1.0, 2.0], dtype=F64).add_(1)
    return (y * table[0]).square().sum() + functional.relu(z * 1.0, inplace=True).sum()


def _statistics_of_the_batch() -> Problem:
    module = nn.BatchNorm1d(4)
    batch_norm.use_batch_statistics(module)
    return of_module(module)


@pytest.mark.parametrize(
    "make",
    [lambda: of_loss(_own), _statistics_of_the_batch],
)
def test_one_that_writes_into_its_own_tensors_is_not(make: Callable[[], Problem]) -> None:
    problem = make()
    got, want = (hypergradient(problem, HYPER, mode).grad for mode in ("forward", "reverse"))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
