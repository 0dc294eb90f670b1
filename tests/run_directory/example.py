"""A search that every test of this folder can write down: made of formulas, so that the tests know every number."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.run_directory.result import HeldOut, Point, Result, Score


class Step(NamedTuple):
    """What the outer loop yields, with every field that is written down."""

    outer_step: int
    validation_loss: float
    training_loss: float
    hyperparameters: dict[str, Tensor]
    hypergradient: dict[str, Tensor]
    raw_hyperparameters: dict[str, Tensor]
    raw_hypergradient: dict[str, Tensor]
    inner_loss: Tensor
    schedules: dict[str, Tensor]
    stats: dict[str, Any]


def step(n: int, horizon: int = 1200) -> Step:
    windows = 0.1 * torch.tensor([1.1, 1.2, 1.0, 0.9, 0.7, 0.5, 0.3], dtype=torch.float64) ** n
    natural = {
        "lr": windows,
        "momentum": torch.tensor(0.9 + 0.001 * n, dtype=torch.float64),
        "weight_decay": torch.tensor([[5e-4, 4e-4], [3e-4, 1e-5 * (n + 1)]], dtype=torch.float64),
        "data_weights": torch.linspace(0.5, 1.5 + n, 40, dtype=torch.float64),
    }
    t = torch.arange(horizon, dtype=torch.float64)
    window = (t * 7 / horizon).long()
    schedules = {"lr": windows[window], "momentum": natural["momentum"].expand(horizon)}
    schedules["weight_decay"] = natural["weight_decay"][(t * 2 / horizon).long()]
    inner_loss = (2.3 - 0.1 * n) * torch.exp(-(0.002 + 0.0004 * n) * t) + 0.05 * torch.sin(t * 0.9)
    gradient = {name: -value / (n + 3) for name, value in natural.items()}
    raw = {name: value.log() for name, value in natural.items()}
    stats = {"wall_s": 1.5 + n, "peak_bytes": 10**6 + n, "num_steps": horizon, "num_gradients": horizon, "num_hvps": 0}
    last = inner_loss[-horizon // 10 :].mean().item()
    return Step(n, 1 / (n + 1.7), last, natural, gradient, raw, gradient, inner_loss, schedules, stats)


def result() -> Result:
    held_out = HeldOut(Score(0.6, 0.81), Score(0.3, 0.93))
    return Result("done", "forward", Point.of(step(0)), Point.of(step(3)), held_out, 12.5)
