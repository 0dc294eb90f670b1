"""The oracle of these tests: a plain first-order training loop, and central differences of its end.

It takes no second derivative and shares no code with the package: heavy ball by hand, one gradient a step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

F64 = torch.float64
HYPER = {"lr": torch.tensor(0.05, dtype=F64), "momentum": torch.tensor(0.5, dtype=F64)}


def trained(start: dict[str, Tensor], loss: Callable[..., Tensor], batch: Any, steps: int, hyper: Any) -> Any:
    """w_T by heavy ball."""
    w = {name: x.clone() for name, x in start.items()}
    m = {name: torch.zeros_like(x) for name, x in w.items()}
    for t in range(steps):
        leaves = {name: x.detach().requires_grad_() for name, x in w.items()}
        grads = torch.autograd.grad(
            loss(dict(leaves), dict(hyper), batch(t)), list(leaves.values()), materialize_grads=True
        )
        for name, g in zip(w, grads, strict=True):
            m[name] = hyper["momentum"] * m[name] + g.detach()
            w[name] = w[name] - hyper["lr"] * m[name]
    return w


def truth(
    start: dict[str, Tensor],
    loss: Callable[..., Tensor],
    outer: Callable[..., Tensor],
    batch: Any,
    steps: int,
    hyper: Any = HYPER,
    h: float = 1e-4,
) -> dict[str, float]:
    """dE/dlambda by fourth-order differences."""

    def value(name: str, by: float) -> float:
        moved = {**hyper, name: hyper[name] + by}
        with torch.no_grad():
            w = trained_with_grad(start, loss, batch, steps, moved)
            return float(outer(w, moved))

    return {
        name: (8 * (value(name, h) - value(name, -h)) - (value(name, 2 * h) - value(name, -2 * h))) / (12 * h)
        for name in hyper
    }


def trained_with_grad(*arguments: Any) -> Any:
    """As `trained`, under whatever grad mode the caller has."""
    with torch.enable_grad():
        return trained(*arguments)


def error(got: dict[str, Tensor], want: dict[str, float]) -> float:
    """Relative, in the norm over all hyperparameters."""
    away = sum((float(got[name]) - x) ** 2 for name, x in want.items()) ** 0.5
    return away / sum(x * x for x in want.values()) ** 0.5
