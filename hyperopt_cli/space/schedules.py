"""Schedules: the value of a hyperparameter at step t of the horizon T, differentiable in each of their parameters.

With `u = (t + 1/2) / T`, the middle of step t as a share of the horizon (so that neither the first nor the last step is
spent at a rate of 0), `peak` the hyperparameter itself, `w` the warm-up share and `f` the final share of the peak:

| kind | value at step t |
|---|---|
| constant | value |
| windows: n | value[floor(t n / T)] |
| knots: n | linear between value[i] and value[i + 1], knots spread evenly from the first step to the last |
| per_step | value[t] |
| warmup_linear | peak u / w, then peak (1 - (1 - f) p) |
| warmup_cosine | peak u / w, then peak (f + (1 - f) (1 + cos(pi p)) / 2) |
| one_cycle | cosine from `initial` peak up to peak, then cosine down to f peak |
| exponential | peak f^u |
| step_decay | peak factor^(number of milestones passed) |

where `p = (u - w) / (1 - w)`. Sources: cosine, Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5;
one cycle, Smith and Topin 2018, https://arxiv.org/abs/1708.07120.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperopt_cli.space.transforms import Transform


@dataclass(frozen=True)
class Parameter:
    """A further parameter of a schedule: where it starts and how it is tuned unless the recipe says otherwise."""

    initial: float
    transform: Transform


_SHARE = Transform("logit", (0.0, 1.0))
_CLOSED_SHARE = Transform("identity", (0.0, 1.0))
_WARMUP = Parameter(0.1, _SHARE)
_FINAL = Parameter(0.01, _CLOSED_SHARE)

# kind -> its further parameters
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "constant": {},
    "windows": {},
    "knots": {},
    "per_step": {},
    "warmup_linear": {"warmup": _WARMUP, "final": _FINAL},
    "warmup_cosine": {"warmup": _WARMUP, "final": _FINAL},
    "one_cycle": {"warmup": Parameter(0.3, _SHARE), "initial": Parameter(0.04, _SHARE), "final": _FINAL},
    "exponential": {"final": Parameter(0.1, Transform("log"))},
    "step_decay": {"factor": Parameter(0.1, _SHARE)},
}


@dataclass(frozen=True)
class Schedule:
    """One schedule over a horizon.

    Args:
        kind: a key of `PARAMETERS`.
        steps: the horizon T.
        count: how many windows or knots.
        milestones: the milestones of `step_decay`, as shares of the horizon.

    Raises:
        ValueError: the kind is unknown, or there are more windows or knots than steps.
    """

    kind: str = "constant"
    steps: int = 1
    count: int | None = None
    milestones: tuple[float, ...] = field(default=(0.5, 0.75))

    def __post_init__(self) -> None:
        if self.kind not in PARAMETERS:
            raise ValueError(f"schedule: got {self.kind!r}; allowed are {', '.join(PARAMETERS)}")
        if self.count is not None and self.count > self.steps:
            raise ValueError(f"{self.kind}: got {self.count} over {self.steps} steps; at most one a step")

    @property
    def size(self) -> int | None:
        """How many values the hyperparameter has; None for one."""
        return self.steps if self.kind == "per_step" else self.count

    def at(self, value: Tensor, parameters: Mapping[str, Tensor], t: int) -> Tensor:
        """Returns the value at step t.

        Args:
            value: `[]` or `[groups]`, with `size` in front where the schedule has one.
            parameters: the further parameters of the schedule, each [].
            t: the step, 0 ... T - 1.

        Returns:
            `[]` or `[groups]`.
        """
        if self.kind in _SHAPES:
            return value * _SHAPES[self.kind]((t + 0.5) / self.steps, **parameters)
        if self.kind == "step_decay":
            passed = sum((t + 0.5) / self.steps > milestone for milestone in self.milestones)
            return value * parameters["factor"] ** passed
        if self.kind == "knots":
            last = value.shape[0] - 1
            place = t / max(self.steps - 1, 1) * last
            i = min(int(place), last - 1)
            return value[i] * (1 - (place - i)) + value[i + 1] * (place - i)
        if self.size is not None:
            return value[t * self.size // self.steps]
        return value


def _rise_and_fall(
    u: float, warmup: Tensor, rise: Callable[[Tensor], Tensor], fall: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns `rise` of the share of the warm-up, then `fall` of that of the rest; it is finite at 0 and 1 too."""
    rising = u < warmup
    up = u / torch.where(rising, warmup, 1.0)
    down = (u - warmup) / torch.where(rising, 1.0, 1 - warmup)
    return torch.where(rising, rise(up), fall(down))


def _half_cosine(p: Tensor) -> Tensor:
    """Returns half a cosine, from 1 at p = 0 to 0 at p = 1."""
    return 0.5 * (1 + torch.cos(math.pi * p))


def _warmup_linear(u: float, warmup: Tensor, final: Tensor) -> Tensor:
    return _rise_and_fall(u, warmup, lambda p: p, lambda p: 1 - (1 - final) * p)


def _warmup_cosine(u: float, warmup: Tensor, final: Tensor) -> Tensor:
    return _rise_and_fall(u, warmup, lambda p: p, lambda p: final + (1 - final) * _half_cosine(p))


def _one_cycle(u: float, warmup: Tensor, initial: Tensor, final: Tensor) -> Tensor:
    return _rise_and_fall(
        u,
        warmup,
        lambda p: 1 + (initial - 1) * _half_cosine(p),
        lambda p: final + (1 - final) * _half_cosine(p),
    )


def _exponential(u: float, final: Tensor) -> Tensor:
    return final**u


_SHAPES: dict[str, Callable[..., Tensor]] = {
    "warmup_linear": _warmup_linear,
    "warmup_cosine": _warmup_cosine,
    "one_cycle": _one_cycle,
    "exponential": _exponential,
}
