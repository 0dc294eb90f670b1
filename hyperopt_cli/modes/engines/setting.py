"""A step of a run as an engine meets it: what engines are tried, checked and measured on."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.modes.engines.base import Engine, Loss, Tangents, gradient
from hyperopt_cli.modes.precision import products_in
from hyperopt_cli.optimizers.base import Params, StepHyper

# By the format of parameters or products: far above rounding, far below what was seen of wrong derivatives.
SYMMETRY = {"float64": 1e-8, "float32": 5e-4, "float16": 5e-2, "bfloat16": 0.1}
AGREEMENT = {"float64": 1e-8, "float32": 2e-3, "tf32": 2e-2, "float16": 5e-2, "bf16": 0.1, "bfloat16": 0.1}


class Setting(NamedTuple):
    """Step 0 of a run.

    Attributes:
        loss: L(w, lambda) on the batch of the step.
        full_loss: the same with products in the precision of the parameters, where those of the run are lower.
        params: P(s_0), named.
        hyper: lambda_0.
        hyper_dot: its tangents along the K columns, [K, ...].
        chunk_size: columns that the run treats at once; None: all K.
        symmetry: the largest asymmetry that counts as rounding, at the precision of the parameters.
        agreement: the largest relative difference of two engines that counts as rounding, at that of the products.
    """

    loss: Loss
    full_loss: Loss
    params: Params
    hyper: StepHyper
    hyper_dot: StepHyper
    chunk_size: int | None
    symmetry: float
    agreement: float

    @classmethod
    def of(cls, dynamics: Dynamics, plain: StepHyper, directions: StepHyper, chunk_size: int | None) -> "Setting":
        """From lambda_0 as the schedule gives it and its tangents along every column."""
        problem, hyper = dynamics.problem, dynamics.cast(plain)
        params = dynamics.layout.unpack(dynamics.point(dynamics.start, hyper, 0))
        hyper_dot = tree_map(lambda dot, x: dot.to(x), directions, hyper)
        loss = full_loss = dynamics.loss_at(0)
        if problem.precision is not None:
            full_loss = replace(dynamics, problem=replace(problem, precision=None)).loss_at(0)
        formats = {str(w.dtype).removeprefix("torch.") for w in params.values()}
        symmetry = max(SYMMETRY.get(each, SYMMETRY["float32"]) for each in formats)
        agreement = max(
            AGREEMENT.get(each, AGREEMENT["float32"]) for each in (*formats, problem.precision or "float64")
        )
        return cls(loss, full_loss, params, hyper, hyper_dot, chunk_size, symmetry, agreement)

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

    def in_full_precision(self, engine: Engine, w_dot: Params) -> Tangents:
        """The products with columns along which lambda rests, at the precision of the parameters."""
        num_columns = next(iter(w_dot.values())).shape[0]
        resting = tree_map(lambda x: x.new_zeros(num_columns, *x.shape), self.hyper)
        with self._full():
            return self._replace(loss=self.full_loss).taken_by(engine, w_dot, resting)

    def plain_gradient(self) -> Params:
        """As training takes it, at the precision of the parameters."""
        with self._full():
            return gradient(self.full_loss, self.params, self.hyper)[1]

    def _full(self) -> AbstractContextManager[None]:
        return products_in(None) if self.full_loss is not self.loss else nullcontext()
