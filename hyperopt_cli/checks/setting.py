"""A step of a run as an engine meets it: what engines are tried, checked and measured on."""

from typing import Any, NamedTuple

from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.dynamics import Dynamics, State
from hyperopt_cli.engines.base import Engine, Tangents
from hyperopt_cli.optimizers.base import Params, StepHyper


class Setting(NamedTuple):
    """A step of a run.

    Attributes:
        t: which.
        loss: L(w, lambda) on the batch of the step.
        params: P(s_t), named.
        hyper: lambda_t.
        hyper_dot: its tangents along the K columns, [K, ...].
        chunk_size: columns that the run treats at once; None: all K.
    """

    t: int
    loss: Loss
    params: Params
    hyper: StepHyper
    hyper_dot: StepHyper
    chunk_size: int | None

    @classmethod
    def of(
        cls, dynamics: Dynamics, t: int, state: State, plain: StepHyper, directions: StepHyper, chunk_size: int | None
    ) -> "Setting":
        """From lambda_t as the schedule gives it and its tangents along every column."""
        hyper = dynamics.cast(plain)
        params = dynamics.layout.unpack(dynamics.point(state, hyper, t))
        hyper_dot = tree_map(lambda dot, x: dot.to(x), directions, hyper)
        return cls(t, dynamics.watched_by(None).loss_at(t), params, hyper, hyper_dot, chunk_size)

    @property
    def num_columns(self) -> int:
        """K."""
        leaf: Any = tree_leaves(self.hyper_dot)[0]
        return int(leaf.shape[0])

    @property
    def at_once(self) -> int:
        """Columns that the run treats at once, at most."""
        return min(self.chunk_size or self.num_columns, self.num_columns)

    def taken_by(self, engine: Engine, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
        """The tangents along some columns, never more of them at once than in the run."""
        return engine(self.loss, self.params, self.hyper, w_dot, hyper_dot, self.at_once)
