"""Rules by name: adam and sgd of `torch.optim`, sign of `sign_descent.py`, in raw coordinates.

    raw_{n+1} = project(raw_n - step(dE/draw)),      dE/draw = dE/dnatural dnatural/draw

Every point costs a hypergradient. Where a step leads to a run that diverges, or whose hypergradient is noise
(`noise.py`), it is halved, five times at the most. Prefer `auto`, whose steps are judged by E and have a size for each
hyperparameter; take these to reproduce a paper, or where every outer step has other seeds.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from hyperopt_cli.errors import NoiseError
from hyperopt_cli.outer.method import Ask, Method, Walk
from hyperopt_cli.outer.sign_descent import SignDescent
from hyperopt_cli.outer.terrain import Terrain

MOST_HALVINGS = 5


class Rule(Method):
    """Follows a rule of `torch.optim`.

    Args:
        lr: the size of a step in raw coordinates.
        clip_norm: the largest norm of dE/draw, over all hyperparameters together; None: any.
        on_nonfinite: where a step leads to what is not finite, or to noise, `backtrack`, halving it, or `stop`.
    """

    in_units: ClassVar[bool] = False

    def __init__(self, lr: float = 0.05, clip_norm: float | None = None, on_nonfinite: str = "backtrack") -> None:
        self._lr, self._clip_norm, self._backtrack = lr, clip_norm, on_nonfinite == "backtrack"

    @abstractmethod
    def rule(self, point: Tensor) -> torch.optim.Optimizer:
        """Returns the optimizer that moves `point`, [K], in place."""

    def walk(self, terrain: Terrain) -> Walk:
        """Yields one point after the other, each with a hypergradient."""
        point = terrain.start.clone()
        good, is_first, rule = point.clone(), True, self.rule(point)
        while True:
            halved_for: list[str] = []
            ask = Ask(point.clone(), gradient=True, has_fallback=self._backtrack and not is_first)
            (answer,) = yield [ask]
            while answer.error is not None:
                halved_for.append(str(answer.error))
                point.copy_(terrain.project((point + good) / 2))
                what = "" if isinstance(answer.error, NoiseError) else f"{answer.error}; "  # noise is in the log too
                (answer,) = yield [
                    ask._replace(
                        point=point.clone(),
                        has_fallback=len(halved_for) < MOST_HALVINGS,
                        halved_for=tuple(halved_for),
                        message=f"{what}its step is halved ({len(halved_for)} of {MOST_HALVINGS})",
                    )
                ]
            assert answer.grad is not None
            is_first, good, point.grad = False, point.clone(), answer.grad * self._scale(answer.grad)
            rule.step()
            point.copy_(terrain.project(point))

    def smallest_step(self, grad: Tensor) -> Tensor:
        """Returns the step that is left after all halvings that are allowed, with the signs of `grad`."""
        smallest: Tensor = self._lr / 2**MOST_HALVINGS * grad.sign()
        return smallest

    def _scale(self, grad: Tensor) -> float:
        """Returns the factor that clips a hypergradient by its norm."""
        norm = float(torch.linalg.vector_norm(grad))
        return 1.0 if self._clip_norm is None or norm <= self._clip_norm else self._clip_norm / norm


class Adam(Rule):
    """Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1, by `torch.optim.Adam`."""

    def rule(self, point: Tensor) -> torch.optim.Optimizer:
        """Returns the optimizer that moves `point`."""
        return torch.optim.Adam([point], lr=self._lr)


class SGD(Rule):
    """Gradient descent with or without momentum, by `torch.optim.SGD`.

    Args:
        momentum: of the rule.
        **others: those of `Rule`.
    """

    def __init__(self, momentum: float = 0.0, **others: Any) -> None:
        super().__init__(**others)
        self._momentum = momentum

    def rule(self, point: Tensor) -> torch.optim.Optimizer:
        """Returns the optimizer that moves `point`."""
        return torch.optim.SGD([point], lr=self._lr, momentum=self._momentum)

    def smallest_step(self, grad: Tensor) -> Tensor:
        """Returns the step that is left after all halvings that are allowed, along `grad`."""
        smallest: Tensor = self._lr / 2**MOST_HALVINGS * self._scale(grad) * grad
        return smallest


class Sign(Rule):
    """FDS's rule (`sign_descent.py`); with `grow` above 1 it is Rprop.

    Args:
        grow: what a step is multiplied by where the sign stays.
        **others: those of `Rule`.
    """

    def __init__(self, grow: float = 1.0, **others: Any) -> None:
        super().__init__(**others)
        self._grow = grow

    def rule(self, point: Tensor) -> torch.optim.Optimizer:
        """Returns the optimizer that moves `point`."""
        return SignDescent([point], lr=self._lr, grow=self._grow)
