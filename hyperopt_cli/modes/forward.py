"""Forward mode: the tangents of the state are carried along with the run.

Synonyms: forward-mode hypergradient, RTHO's exact version, "FDS" when learning rates share windows.

    Z_{t+1} = A_t Z_t + B_t,    Z_t = ds_t/dlambda [K columns]
    dE/dlambda = dE/ds_T Z_T + dE/dlambda

Franceschi et al. 2017, algorithm 2 (Forward-HG), https://proceedings.mlr.press/v70/franceschi17a.

The product is taken column by column of the same step: the tangent of the gradient comes from an engine, the rest is
the Jacobian-vector product of the update rule,

    g'_k = H w'_k + d2L/dw dlambda lambda'_k,     s'_k <- dU (s'_k, g'_k, lambda'_k)

Cost: T (1 gradient + K tangents). Memory: K + 1 states, whatever T.

A column that is zero stays zero until a step's lambda_t depends on it (its window of a schedule begins): until then it
is not carried at all.

Prefer reverse or reversible for many hyperparameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.modes.base import Account, Hypergradient
from hyperopt_cli.modes.compiling import WholeStep
from hyperopt_cli.modes.deciding import Compiling
from hyperopt_cli.modes.directions import LambdaAt, identity, tangents_of_schedule
from hyperopt_cli.modes.dynamics import Dynamics, State
from hyperopt_cli.modes.engines import ENGINES, Engine, check_name, push_columns
from hyperopt_cli.modes.engines.choice import chosen
from hyperopt_cli.modes.engines.setting import Setting
from hyperopt_cli.modes.engines.symmetry import check_symmetry
from hyperopt_cli.modes.engines.verdict import Circumstances, Verdict
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.stepping import StepAt
from hyperopt_cli.modes.sweep import train_step
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Batch, Hyper, Problem


@dataclass(frozen=True)
class Forward(Compiling):
    """Forward mode.

    `stats["engine"]` is the engine that ran; where `auto` chose it, `stats["engine_why"]` is the reason. At step 0 of
    each run two products are tried for symmetry (`engines/symmetry.py`).

    Args:
        engine: how the tangent of the gradient is taken, a name in `engines.ENGINES`, or `auto`: the quickest of those
            that are right, decided at the first hypergradient of a problem of that size (`engines/choice.py`).
        chunk_size: columns treated at once; None: all K. Fewer need less memory.
        compile: the whole step as one compiled function; "auto": where the horizon repays it. One is compiled for 1,
            2, 4, ... and K columns: rows that no column has begun to use are zero.

    Raises:
        ValueError: unknown engine, a chunk of less than one column, or another word for `compile`.
    """

    engine: str = "auto"
    chunk_size: int | None = None
    compile: bool | str = "auto"
    _known: dict[Circumstances, Verdict] = field(default_factory=dict, init=False, compare=False, repr=False)
    _whole: dict[str, WholeStep] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.engine)
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size: got {self.chunk_size}; a chunk has at least 1 column")
        self._check_compile()

    def differentiate(self, problem: Problem, hyper: Hyper, account: Account) -> Hypergradient:
        """Franceschi et al. 2017, algorithm 2."""
        dynamics = Dynamics.of(problem, hyper)
        columns = _start(dynamics, hyper)
        lambda_at = tangents_of_schedule(dynamics, hyper)
        verdict = self._verdict(dynamics, hyper, lambda_at)
        try:
            return self._differentiated(dynamics, hyper, lambda_at, columns, verdict, account)
        except (UsageError, VerificationError) as error:
            self._give_up(verdict, error)
        return self.differentiate(problem, hyper, account)

    def _differentiated(
        self,
        dynamics: Dynamics,
        hyper: Hyper,
        lambda_at: LambdaAt,
        columns: "Columns",
        verdict: Verdict,
        account: Account,
    ) -> Hypergradient:
        problem = dynamics.problem
        assert verdict.compilation is not None
        step = self._step(dynamics, verdict.engine, verdict.compilation.compiled)
        columns = columns._replace(padded=step.is_compiled)
        begin, state, columns = _begun(account, dynamics, columns)
        for t in range(begin, problem.steps):
            state, columns = self._advanced(dynamics, step, lambda_at, state, columns, t, account)
            account.step_done("forward", t + 1, problem.steps)
            account.offer(partial(_left, t + 1, state, columns))
        params = dynamics.layout.unpack(dynamics.result(state))
        left_at_end = partial(_left, problem.steps, state, columns)
        objective = outer_objective(problem, params, hyper, partial(account.offer, left_at_end))
        grad = _contract(dynamics, state, columns, objective.by_params, objective.by_hyper)
        result = account.close(objective.value, grad, params)
        why = {"engine_why": verdict.why} if self.engine == "auto" else {}
        told = {"engine": verdict.engine, **why, **self._told(verdict.compilation)}
        return result._replace(stats={**result.stats, **told})

    def _verdict(self, dynamics: Dynamics, hyper: Hyper, lambda_at: LambdaAt) -> Verdict:
        """The engine of this run, found right at step 0, and whether the step is compiled."""
        setting = Setting.of(dynamics, *lambda_at(0), self.chunk_size)
        if self.engine == "auto":
            verdict = chosen(self._known, dynamics, hyper, setting)
        else:
            check_symmetry(f"engine {self.engine}", ENGINES[self.engine], setting)
            made_for = Circumstances.of(dynamics, hyper, setting.num_columns, self.chunk_size)
            known = self._known.get(made_for)
            given = Verdict(self.engine, "set by hand", made_for)
            verdict = known if known is not None and known.engine == self.engine else given
        drawn = torch.Generator().manual_seed(0)  # at Z = 0 no product with H would be compared

        def rows(x: Tensor) -> Tensor:
            return torch.randn(setting.num_columns, *x.shape, generator=drawn, dtype=x.dtype).to(x.device)

        z = tree_map(rows, dynamics.start)
        step = self._step(dynamics, verdict.engine, compiled=False)
        return self._settled(verdict, step, 0, dynamics.start, z, setting.hyper, setting.hyper_dot)

    def _step(self, dynamics: Dynamics, engine: str, compiled: bool) -> StepAt:
        function = partial(tangent_step, engine=ENGINES[engine], chunk_size=self.chunk_size)
        return self._step_at(dynamics, engine, function, compiled)

    def _advanced(
        self,
        dynamics: Dynamics,
        step: StepAt,
        lambda_at: LambdaAt,
        state: State,
        columns: "Columns",
        t: int,
        account: Account,
    ) -> tuple[State, "Columns"]:
        """s_t, Z_t -> s_{t+1}, Z_{t+1}."""
        plain, directions = lambda_at(t)
        columns = columns.joined_by(directions, state)  # asked where hyper lies, not on the device: nothing waits
        step_hyper = dynamics.cast(plain)
        account.num_steps += 1
        account.num_gradients += 1
        if not columns.active:
            state, value = train_step(dynamics, dynamics.problem.batch(t), t, state, step_hyper)
            account.watch(t, "the training loss", value)
            account.inner_loss[t] = value
            return state, columns

        lambda_dot = tree_map(
            lambda dot, x: dot.to(x.device, x.dtype, non_blocking=True), columns.of(directions), step_hyper
        )
        state, z, value, value_dot = step(t, state, columns.z, step_hyper, lambda_dot)
        account.num_hvps += len(columns.active)
        account.watch(t, "the training loss", value)
        account.watch(t, "the tangent of the training loss", value_dot)
        account.inner_loss[t] = value
        return state, columns._replace(z=z)


def tangent_step(
    dynamics: Dynamics,
    batch: Batch,
    t: Any,
    state: State,
    z: State,
    step_hyper: StepHyper,
    lambda_dot: StepHyper,
    *,
    engine: Engine,
    chunk_size: int | None,
) -> tuple[State, State, Tensor, Tensor]:
    """s_{t+1}, Z_{t+1}, L and its tangents."""
    layout = dynamics.layout
    point, point_dot = _point_tangents(dynamics, state, z, step_hyper, lambda_dot, t)
    loss = dynamics.loss_on(batch)
    out = engine(loss, layout.unpack(point), step_hyper, layout.unpack(point_dot, 1), lambda_dot, chunk_size)
    after, z_after = push_columns(
        lambda s, g, at: dynamics.update(s, g, at, t),
        (state, layout.pack(out.grads), step_hyper),
        (z, layout.pack(out.grad_tangents, 1), lambda_dot),
    )
    return after, z_after, out.loss, out.loss_tangents


class Columns(NamedTuple):
    """The tangents that are carried.

    Attributes:
        num: K.
        active: which of the K are carried, in the order of Z's rows.
        z: Z_t, a state with a row for each active column, and rows of zeros where `padded`.
        padded: the number of rows is 1, 2, 4, ... or K, so that few steps have to be compiled.
    """

    num: int
    active: list[int]
    z: State
    padded: bool = False

    def joined_by(self, directions: StepHyper, state: State) -> "Columns":
        """With the columns that begin at this step: zero so far, and lambda_t moves along them."""
        if len(self.active) == self.num:
            return self
        moving = [(entry != 0).reshape(entry.shape[0], -1).any(dim=1).cpu() for entry in tree_leaves(directions)]
        known = set(self.active)
        new = [k for k in torch.stack(moving).any(dim=0).nonzero().flatten().tolist() if k not in known]
        if not new:
            return self
        active = self.active + new
        num_rows = min(self.num, 1 << (len(active) - 1).bit_length()) if self.padded else len(active)
        rows = tree_map(lambda x: x.new_zeros(num_rows - len(self.active), *x.shape), state)
        z = tree_map(lambda z, row: torch.cat([z[: len(self.active)], row]), self.z, rows) if self.active else rows
        return self._replace(active=active, z=z)

    def found(self, left: Mapping[str, Any]) -> "Columns":
        """Those that were carried where another process stopped."""
        device = tree_leaves(self.z)[0].device
        return self._replace(active=left["active"], z=State.found(left["z"], device))

    def of(self, directions: StepHyper) -> StepHyper:
        """The rows of lambda' that belong to Z's."""
        if self.active == list(range(self.num)):
            return directions
        num_rows = tree_leaves(self.z)[0].shape[0]
        chosen: StepHyper = tree_map(lambda entry: _padded(entry[self.active], num_rows), directions)
        return chosen


def _left(t: int, state: State, columns: Columns) -> dict[str, Any]:
    """What the run goes on from at step t."""
    return {"t": t, "state": state.kept(), "z": columns.z.kept(), "active": columns.active}


def _begun(account: Account, dynamics: Dynamics, columns: Columns) -> tuple[int, State, Columns]:
    """t, s_t and Z_t where another process stopped, or at the start."""
    left = account.left()
    if left is None:
        return 0, dynamics.start, columns
    return left["t"], State.found(left["state"], dynamics.like.device), columns.found(left)


def _padded(rows: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _start(dynamics: Dynamics, hyper: Hyper) -> Columns:
    """Z_0 = ds_0/dlambda: the columns that init depends on."""
    num = sum(value.numel() for value in hyper.values())
    none = Columns(num, [], tree_map(lambda x: x.new_zeros(0, *x.shape), dynamics.start))
    with torch.enable_grad():
        named = dynamics.problem.initial({name: value.detach().requires_grad_() for name, value in hyper.items()})
    if not any(w.grad_fn is not None or w.requires_grad for w in named.values()):
        return none

    _, start_dot = push_columns(dynamics.initial, (hyper,), (identity(hyper),))
    start_dot = tree_map(lambda x, s: x.to(s), start_dot, dynamics.start)
    moving = [(x != 0).reshape(x.shape[0], -1).any(dim=1).cpu() for x in tree_leaves(start_dot)]
    active = torch.stack(moving).any(dim=0).nonzero().flatten().tolist()
    return Columns(num, active, tree_map(lambda x: x[active], start_dot))


def _point_tangents(
    dynamics: Dynamics, state: State, z: State, step_hyper: StepHyper, lambda_dot: StepHyper, t: int
) -> tuple[Params, Params]:
    """P(s_t, lambda_t) and its tangents."""
    if dynamics.point_is_state:
        return state.params, z.params

    return push_columns(lambda s, at: dynamics.point(s, at, t), (state, step_hyper), (z, lambda_dot))


def _contract(dynamics: Dynamics, state: State, columns: Columns, by_params: Params, by_hyper: Hyper) -> Hyper:
    """dE/ds_T Z_T + dE/dlambda, per key."""
    total = torch.zeros(columns.num, dtype=torch.float64)
    if columns.active:
        z = tree_map(lambda x: x[: len(columns.active)], columns.z)
        _, w_dot = push_columns(dynamics.result, (state,), (z,))
        held = dynamics.layout.pack(by_params)
        rows = [x.reshape(len(columns.active), -1).to(held[name]) @ held[name].flatten() for name, x in w_dot.items()]
        total[columns.active] = torch.stack([row.double() for row in rows]).sum(dim=0).cpu()
    parts = torch.split(total, [value.numel() for value in by_hyper.values()])
    return {
        name: direct + part.view(direct.shape).to(direct)
        for (name, direct), part in zip(by_hyper.items(), parts, strict=True)
    }
