"""FDS's outer rule: a step of fixed size in the direction of the sign, halved where the sign flips.

    raw <- raw - gamma sign(g),      gamma <- gamma / 2 where sign(g) differs from the last one's, else grow gamma

Micaelli and Storkey 2021, "Gradient-based Hyperparameter Optimization Over Long Horizons",
https://arxiv.org/abs/2007.07869. It does not grow; with growth by 1.2 it is Rprop of Riedmiller and Braun 1993
without weight-backtracking. `torch.optim.Rprop` is no substitute, because it skips the step on a flip.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SignDescent(torch.optim.Optimizer):
    """Descends by steps of fixed size in the direction of the gradient's sign, which shrink where the sign flips.

    Args:
        params: the raw hyperparameters.
        lr: the first step gamma, of each element.
        grow: what gamma is multiplied by where the sign stays.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, grow: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "grow": grow})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; the step size of an element is halved before it moves against its last direction."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, direction = self.state[p], p.grad.sign()
                gamma = state.get("gamma", torch.full_like(p, group["lr"]))
                agree = direction * state.get("direction", torch.zeros_like(direction))
                state["gamma"] = torch.where(agree < 0, gamma / 2, torch.where(agree > 0, group["grow"] * gamma, gamma))
                state["direction"] = torch.where(direction == 0, state.get("direction", direction), direction)
                p.sub_(state["gamma"] * direction)
        return loss
