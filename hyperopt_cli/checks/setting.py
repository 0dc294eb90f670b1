"""A step of a run as an engine meets it: what engines are tried, checked and measured on."""

from typing import Any, NamedTuple

from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.dynamics import Dynamics, State
from hyperopt_cli.engines.base import Engine, Tangents
from hyperopt_cli.optimizers.base import Params, StepHyper


class Setting(NamedTuple):
    """A step of a run, as an engine meets it.

    Attributes:
        t: which.
        loss: L(w, lambda) on the batch of the step.
        params: P(s_t, lambda_t), named.
        hyper: lambda_t.
        hyper_dot: its tangents along the K columns, [K, ...].
    """

    t: int
    loss: Loss
    params: Params
    hyper: StepHyper
    hyper_dot: StepHyper

    @classmethod
    def of(cls, dynamics: Dynamics, t: int, state: State, plain: StepHyper, directions: StepHyper) -> "Setting":
        """Evaluates what an engine is given at a step.

        Args:
            dynamics: of the run.
            t: the step.
            state: s_t.
            plain: lambda_t as the schedule gives it, before the cast to the parameters' dtype and device.
            directions: its tangents along the K columns, like `plain`, `[K, *shape]`.
        """
        hyper = dynamics.cast(plain)
        params = dynamics.layout.unpack(dynamics.point(state, hyper, t))
        hyper_dot = tree_map(lambda dot, x: dot.to(x), directions, hyper)
        return cls(t, dynamics.watched_by(None).loss_at(t), params, hyper, hyper_dot)

    @property
    def num_columns(self) -> int:
        """The number K of columns along which `hyper_dot` goes."""
        leaf: Any = tree_leaves(self.hyper_dot)[0]
        return int(leaf.shape[0])

    def tangents(self, engine: Engine, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
        """Takes the tangents of L and g by an engine, along `w_dot` and `hyper_dot`, `[K, *shape]`."""
        return engine(self.loss, self.params, self.hyper, w_dot, hyper_dot)
