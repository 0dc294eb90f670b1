"""Floating-point operations that a training step and its tangents cannot do without: those of their matrix products.

A product y = x a of a network's forward pass takes f operations (2 per multiplication), and as much for each of the two
products of its backward, x^T dy and dy a^T; the second is not needed where x is the input. A tangent column
differentiates them by the product rule, which makes two of each:

    y' = x' a + x a',    (x^T dy)' = x'^T dy + x^T dy',    (dy a^T)' = dy' a^T + dy a'^T

and x' = 0 where x is the input. So a column takes 6 f where a gradient takes 3 f, and at the input 2 f where a gradient
takes 2 f. With F the forward pass and G the gradient, the input's products take 3 F - G, and

    column = 2 G - 2 (3 F - G) = 4 G - 6 F

F and G are counted while they run, so that this holds for convolutions and attention too.
"""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from hyperopt_cli.bench.problems import start_and_loss
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.problem import Batch


class StepFlops(NamedTuple):
    """Floating-point operations of one training step.

    Attributes:
        gradient: operations of the gradient, G.
        column: operations that one tangent column adds.
    """

    gradient: int
    column: int

    @property
    def column_over_gradient(self) -> float:
        """The least that a column can cost, in gradients."""
        return self.column / self.gradient

    def of_step(self, num_columns: int) -> int:
        """Returns the operations of a gradient with its tangents."""
        return self.gradient + num_columns * self.column


def step_flops(model: torch.nn.Module, batch: Batch) -> StepFlops:
    """Counts the operations of a step on one batch: those of matrix products and convolutions, and no others."""
    params, loss = start_and_loss(model)
    with torch.no_grad(), FlopCounterMode(display=False) as there:
        loss(params, batch)
    with FlopCounterMode(display=False) as there_and_back:
        gradient(lambda w, _: loss(w, batch), params, {})
    forward, whole = there.get_total_flops(), there_and_back.get_total_flops()
    return StepFlops(whole, 4 * whole - 6 * forward)
