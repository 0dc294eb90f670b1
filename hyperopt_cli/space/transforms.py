"""Transforms: the outer optimizer walks in raw coordinates, training uses natural ones.

    natural = f(raw)        dE/draw = dE/dnatural f'(raw)

| transform | natural | range |
|---|---|---|
| log | exp(raw) | (0, inf) |
| logit | low + (high - low) sigmoid(raw) | (low, high), default (0, 1) |
| softplus | log(1 + exp(raw)) | (0, inf) |
| identity | raw | all numbers; with bounds, projected onto [low, high] after each step |

With log and softplus, bounds limit the walk in the same way: by projection.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("log", "logit", "softplus", "identity")


@dataclass(frozen=True)
class Transform:
    """One transform with its bounds.

    Args:
        name: one of `NAMES`.
        bounds: `(low, high)` of the natural value, or None.

    Raises:
        ValueError: the name is unknown, or the transform cannot have these bounds.
    """

    name: str
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"transform: got {self.name!r}; allowed are {', '.join(NAMES)}")
        if self.bounds is None:
            return
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"bounds: got [{low}, {high}]; the first must be below the second")
        if self.name in ("log", "softplus") and low <= 0:
            raise ValueError(f"bounds: got [{low}, {high}] with {self.name}; its values are above 0")

    @property
    def range(self) -> tuple[float, float]:
        """The range of natural values that can be reached; log, logit and softplus without bounds exclude its ends."""
        if self.bounds is not None:
            return self.bounds
        return {"log": (0.0, math.inf), "softplus": (0.0, math.inf), "logit": (0.0, 1.0)}.get(
            self.name, (-math.inf, math.inf)
        )

    def refusal(self, start: float) -> str | None:
        """Returns why `start` is no natural value to begin at, and what to do; None if it is one."""
        low, high = self.range
        closed = self.name == "identity" or (self.name != "logit" and self.bounds is not None)
        if (low <= start <= high) if closed else (low < start < high):
            return None
        brackets = "[]" if closed else "()"
        message = f"got {start:g}; {self.name} starts inside {brackets[0]}{low:g}, {high:g}{brackets[1]}"
        if start in (low, high) and not closed:
            reach = f"[{low:g}, {high:g}]" if math.isfinite(high) else f"[{low:g}, 1]"
            message += f". To start at and reach {start:g} itself: transform: identity, bounds: {reach}"
        return message

    def natural(self, raw: Tensor) -> Tensor:
        """Returns the natural value f(raw), which is differentiable."""
        if self.name == "log":
            return raw.exp()
        if self.name == "softplus":
            return torch.nn.functional.softplus(raw)
        if self.name == "logit":
            low, high = self.range
            return low + (high - low) * torch.sigmoid(raw)
        return raw

    def raw(self, natural: Tensor) -> Tensor:
        """Returns the raw value of a natural one; this is the inverse of `natural`."""
        if self.name == "log":
            return natural.log()
        if self.name == "softplus":
            return natural + torch.log(-torch.expm1(-natural))
        if self.name == "logit":
            low, high = self.range
            return torch.logit((natural - low) / (high - low))
        return natural

    def project(self, raw: Tensor) -> Tensor:
        """Returns the nearest raw value whose natural value lies within the bounds."""
        if self.bounds is None or self.name == "logit":
            return raw
        low, high = (float(self.raw(torch.tensor(bound, dtype=raw.dtype))) for bound in self.bounds)
        return raw.clamp(low, high)
