"""Forward mode: the tangents of the state are carried along with the run.

Synonyms: forward-mode hypergradient, RTHO's exact version, "FDS" when learning rates share windows.

    Z_{t+1} = A_t Z_t + B_t,    Z_t = ds_t/dlambda [K columns]
    dE/dlambda = dE/ds_T Z_T + the direct part of E in lambda

with A_t = ds_{t+1}/ds_t and B_t = ds_{t+1}/dlambda_t dlambda_t/dlambda.

Franceschi et al. 2017, algorithm 2 (Forward-HG), https://proceedings.mlr.press/v70/franceschi17a.

The product is taken column by column of the same step: the tangent of the gradient comes from an engine, the rest is
the Jacobian-vector product of the update rule,

    g'_k = H w'_k + d2L/dw dlambda lambda'_k,     s'_k <- dU (s'_k, g'_k, lambda'_k)

Cost: T (1 gradient + K tangents). Memory: K + 1 states, whatever T.

Prefer reverse or reversible for many hyperparameters.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.checks.engine_judge import AUTO, EngineJudge, TakenWronglyError
from hyperopt_cli.checks.setting import Setting
from hyperopt_cli.checks.verdict import Verdict
from hyperopt_cli.dynamics.derivatives import push_columns
from hyperopt_cli.dynamics.dynamics import Dynamics, State, train_step
from hyperopt_cli.dynamics.stepping import StepAt
from hyperopt_cli.engines import ENGINES, Engine, check_name
from hyperopt_cli.errors import NonDeterministicError, NonFiniteError, RenamedWarning, UsageError, VerificationError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.columns import Carried, Columns
from hyperopt_cli.modes.compilation import check_compile, compilation_of, stats_of_compilation, without_compiling
from hyperopt_cli.modes.directions import LambdaAt, tangents_of_schedule
from hyperopt_cli.modes.measurements import Measurements
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.planning import forward_cost
from hyperopt_cli.modes.planning.prediction import Basis, Prediction
from hyperopt_cli.modes.result import Hypergradient, stats_of_checks
from hyperopt_cli.modes.shared_columns import SharedColumns
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Batch, Hyper, Problem
from hyperopt_cli.program import Compilation
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.stopping import may_stop

TANGENT = "the tangent of the training loss"


@dataclass(frozen=True)
class Forward(Mode):
    """Forward mode.

    `stats["engine"]` is the engine that ran last; where `auto` chose it, `stats["engine_why"]` is the reason. At step 0
    of each run, at steps of a kind that was not met before and at a few drawn by seed, its tangents are compared with
    central differences of the training gradient (`checks/examination.py`).

    Args:
        engine: how the tangent of the gradient is taken, a name in `engines.ENGINES`, or `auto`: the quickest of those
            that are right, decided at the first hypergradient of a problem of that size (`checks/choice.py`).
        columns_at_once: columns that a step treats at once; None: all K. Fewer need less memory.
        compile: the whole step as one compiled function; "auto": where the horizon repays it. One is compiled for 1,
            2, 4, ... and K columns: rows that no column has begun to use are zero.

    Raises:
        ValueError: unknown engine, less than one column at once, or another word for `compile`.
    """

    has_columns: ClassVar[bool] = True

    engine: str = "auto"
    columns_at_once: int | None = None
    compile: bool | str = "auto"
    chunk_size: InitVar[int | None] = None  # the former name of columns_at_once

    def __post_init__(self, chunk_size: int | None) -> None:
        check_name(self.engine)
        if chunk_size is not None:
            warnings.warn("Forward: chunk_size is called columns_at_once now", RenamedWarning, stacklevel=3)
            if self.columns_at_once is not None:
                raise ValueError("chunk_size: it is the former name of columns_at_once; give one of them")
            object.__setattr__(self, "columns_at_once", chunk_size)
        if self.columns_at_once is not None and self.columns_at_once < 1:
            raise ValueError(f"columns_at_once: got {self.columns_at_once}; allowed are None (all) and 1 or more")
        check_compile(self.compile)

    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        """Carries the tangents along with the run (Franceschi et al. 2017, algorithm 2).

        Args:
            problem: the training run.
            hyper: lambda, detached.
            account: records the run.
            measurements: of earlier hypergradients; new ones are added.
        """
        judge = measurements.engine_judge(self.engine)
        columns = self.columns(hyper, account.ranks)
        if len(columns.blocks) > 1:  # each of them takes the batch
            problem = replace(problem, batch=lru_cache(maxsize=1)(problem.batch))
        dynamics = judge.watching(Dynamics.of(problem, hyper), hyper, account.examines)
        lambda_at = tangents_of_schedule(dynamics, hyper)
        setting = _first_block(dynamics, columns, lambda_at)
        verdict = judge.at_start(measurements.verdicts, dynamics, hyper, setting)
        decided_for = verdict.engine, verdict.made_for
        compilation = self._compilation(dynamics, setting, verdict, measurements, account.ranks)
        if (saved := account.peek("engine")) is not None and saved in ENGINES:
            verdict = replace(verdict, engine=saved)  # another process may have chosen another one
        verdict = replace(verdict, engine=account.from_lead(verdict.engine))
        run = partial(self._differentiated, dynamics, hyper, columns, lambda_at, judge, measurements)
        try:
            return run(verdict, compilation, account)
        except TakenWronglyError as error:
            measurements.verdicts[error.verdict.made_for] = error.verdict
        except (UsageError, VerificationError) as error:
            measurements.compilations[decided_for] = without_compiling(self.compile, compilation, error)
        account.restart()
        return self.differentiate(problem, hyper, account, measurements)

    def _differentiated(
        self,
        dynamics: Dynamics,
        hyper: Hyper,
        columns: SharedColumns,
        lambda_at: LambdaAt,
        judge: EngineJudge,
        measurements: Measurements,
        verdict: Verdict,
        compilation: Compilation,
        account: Account,
    ) -> Hypergradient:
        problem = dynamics.problem
        step = _step(dynamics, verdict.engine, compilation.compiled, measurements)
        carried = Carried.at_start(dynamics, hyper, columns.blocks, padded=step.is_compiled)
        account.growth.tangents(0, [block.z.params for block in carried.blocks])
        first, state, carried = _resumed(account, dynamics, columns, carried)
        judge.watch.met.clear()

        def save(at: int) -> None:
            of_run = columns, account, verdict.engine
            account.save_if_due(lambda: _resume_state(at, state, carried.blocks, *of_run))

        for t in range(first, problem.steps):
            before, engine = (state, carried), verdict.engine
            setting_of = partial(_setting, dynamics, lambda_at, t, state)
            try:
                state, carried = _advanced(dynamics, step, lambda_at, *before, t, account)
            except (NonFiniteError, UsageError, RuntimeError) as error:
                verdict = self._without(judge, setting_of, verdict, step.is_compiled, error)
            else:
                verdict = judge.look(dynamics, t, setting_of, verdict)
            if verdict.engine != engine:
                step = _step(dynamics, verdict.engine, False, measurements)
                account.retake(t, sum(len(block.active) for block in carried.blocks))
                state, carried = _advanced(dynamics, step, lambda_at, *before, t, account)
            del before, setting_of
            account.growth.tangents(t + 1, [block.z.params for block in carried.blocks])
            account.progress.step_done("forward", t + 1, problem.steps)
            save(t + 1)
        params = dynamics.layout.unpack(dynamics.result(state))
        alone = account.ranks.size == 1  # several processes save after a step, and nowhere else
        between = partial(save, problem.steps) if alone else may_stop
        objective = outer_objective(problem, params, hyper, between, judge.outer)
        account.meet()
        grad = _contract(dynamics, state, carried.blocks, columns, objective.by_params, objective.by_hyper)
        account.counts.num_hvps = columns.gather(account)
        result = account.close(objective.value, grad, params)
        stats = {**result.stats, "engine": verdict.engine}
        stats |= {"engine_why": verdict.why} if self.engine == AUTO else {}
        stats |= stats_of_compilation(compilation) | stats_of_checks(judge.notes)
        return result._replace(stats=stats)

    @property
    def may_compile_steps(self) -> bool:
        """Whether its steps are compiled where the horizon repays it."""
        return self.compile == "auto"

    def predictions(self, basis: Basis) -> Iterable[Prediction]:
        """Predicts all columns at once, and fewer where that may help.

        Args:
            basis: the problem, and what was measured of it.
        """
        return forward_cost.predictions(self, basis)

    def smaller(
        self, problem: Problem, hyper: Hyper, measurements: Measurements, ranks: Ranks = ALONE
    ) -> "Forward | None":
        """Returns forward mode with half as many columns at once; Z itself stays as large as it is.

        Args:
            problem: the training run.
            hyper: lambda.
            measurements: of earlier hypergradients.
            ranks: the processes that take the run together.
        """
        at_once = self.columns(hyper, ranks).most_at_once
        return None if at_once <= 1 else replace(self, columns_at_once=-(-at_once // 2))

    def check_ranks(self, hyper: Hyper, ranks: Ranks) -> None:
        """Refuses processes without a column.

        Raises:
            UsageError: `ranks` divide the columns, and there are fewer blocks than ranks.
        """
        self.columns(hyper, ranks)

    def columns(self, hyper: Hyper, ranks: Ranks) -> SharedColumns:
        """Returns the columns of a run.

        Raises:
            UsageError: `ranks` divide them, and there are fewer blocks than ranks.
        """
        return SharedColumns.of(hyper, self.columns_at_once, ranks)

    def _compilation(
        self, dynamics: Dynamics, setting: Setting, verdict: Verdict, measurements: Measurements, ranks: Ranks
    ) -> Compilation:
        """Whether the step with an engine is compiled."""
        drawn = torch.Generator().manual_seed(0)  # at Z = 0 no product with H would be compared

        def rows(x: Tensor) -> Tensor:
            return torch.randn(setting.num_columns, *x.shape, generator=drawn, dtype=x.dtype).to(x.device)

        z = tree_map(rows, dynamics.start)
        step = _step(dynamics, verdict.engine, False, measurements)
        example = 0, dynamics.start, z, setting.hyper, setting.hyper_dot
        return compilation_of(self.compile, verdict.engine, verdict.made_for, step, example, measurements, ranks)

    def _without(
        self, judge: EngineJudge, setting_of: Callable[[], Setting], verdict: Verdict, compiled: bool, error: Exception
    ) -> Verdict:
        """Another engine at a step where this one fails, or has a tangent that is not finite though the loss is.

        Raises:
            Exception: `error`, where no engine can take the step, or it is not of the engine.
        """
        of_tangent = isinstance(error, NonFiniteError) and error.what == TANGENT
        failed = not isinstance(error, NonFiniteError | NonDeterministicError) and not is_lacking(error)
        if not of_tangent and (not failed or compiled or self.engine != "auto"):
            raise error
        setting = setting_of()
        if isinstance(error, NonFiniteError) and error.step != setting.t:
            raise error
        return judge.instead(setting, verdict, error, of_tangent)


def _step(dynamics: Dynamics, engine: str, compiled: bool, measurements: Measurements) -> StepAt:
    function = partial(tangent_step, engine=ENGINES[engine])
    return StepAt(dynamics, function, measurements.compiled_step(engine), compiled)


def _first_block(dynamics: Dynamics, columns: SharedColumns, lambda_at: LambdaAt) -> Setting:
    """Step 0 with the first columns that are treated at once."""
    plain, directions = lambda_at(0)
    block = columns.blocks[0]
    directions = tree_map(lambda x: x[block], directions)
    return Setting.of(dynamics, 0, dynamics.start, plain, directions)


def _setting(dynamics: Dynamics, lambda_at: LambdaAt, t: int, state: State) -> Setting:
    return Setting.of(dynamics, t, state, *lambda_at(t))


def _advanced(
    dynamics: Dynamics, step: StepAt, lambda_at: LambdaAt, state: State, carried: Carried, t: int, account: Account
) -> tuple[State, Carried]:
    """Takes s_t and Z_t of all blocks to s_{t+1} and Z_{t+1}."""
    plain, directions = lambda_at(t)
    carried, step_hyper = carried.joined_by(directions, state), dynamics.cast(plain)
    account.counts.add_steps(1)
    value_dots: list[Tensor] = []
    if carried.resting:
        after, value = train_step(dynamics, dynamics.problem.batch(t), t, state, step_hyper)
    elif not any(block.active for block in carried.blocks):
        after, value = _with_a_resting_column(step, t, state, step_hyper)
    else:
        blocks = list(carried.blocks)
        for i, block in enumerate(blocks):
            if block.active:
                lambda_dot = tree_map(
                    lambda dot, x: dot.to(x.device, x.dtype, non_blocking=x.device.type != "cpu"),
                    block.of(directions),
                    step_hyper,
                )
                after, z, value, value_dot = step(t, state, block.z, step_hyper, lambda_dot)
                blocks[i] = block._replace(z=z)
                account.counts.num_hvps += len(block.active)
                value_dots.append(value_dot)
        carried = carried._replace(blocks=blocks)
    account.finite.watch(t, "the training loss", value)
    for value_dot in value_dots:
        account.finite.watch(t, TANGENT, value_dot)
    if account.finite.every == 1:  # a column that is lost is seen before anything rests on it
        for block in carried.blocks:
            if block.active:
                account.finite.watch(t, TANGENT, torch.stack([x.sum() for x in block.z.params.values()]))
    account.inner_loss[t] = value
    return after, carried


def _with_a_resting_column(step: StepAt, t: int, state: State, step_hyper: StepHyper) -> tuple[State, Tensor]:
    """s_{t+1} and L with the bits that they have on processes whose columns move: every engine may have its own."""
    zeros = tree_map(lambda x: x.new_zeros(1, *x.shape), (state, step_hyper))
    after, _, value, _ = step(t, state, zeros[0], step_hyper, zeros[1])
    return after, value


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
) -> tuple[State, State, Tensor, Tensor]:
    """Takes one training step with the tangents of the state.

    Args:
        dynamics: of the run.
        batch: that of step t.
        t: the step.
        state: s_t.
        z: Z_t, like a state, `[K, *shape]`.
        step_hyper: lambda_t.
        lambda_dot: its tangents, `[K, *shape]`.
        engine: takes the tangents of the gradient.

    Returns:
        s_{t+1}, Z_{t+1}, L [] and its tangents [K].
    """
    layout = dynamics.layout
    point, point_dot = _point_tangents(dynamics, state, z, step_hyper, lambda_dot, t)
    loss = dynamics.loss_on(batch)
    out = engine(loss, layout.unpack(point), step_hyper, layout.unpack(point_dot, 1), lambda_dot)
    primals = (state, layout.pack(out.grads), step_hyper)
    update = dynamics.derivable("update", lambda s, g, at: dynamics.update(s, g, at, t), primals)
    after, z_after = push_columns(update, primals, (z, layout.pack(out.grad_tangents, 1), lambda_dot))
    return after, z_after, out.loss, out.loss_tangents


def _point_tangents(
    dynamics: Dynamics, state: State, z: State, step_hyper: StepHyper, lambda_dot: StepHyper, t: int
) -> tuple[Params, Params]:
    """Returns P(s_t, lambda_t) and its tangents."""
    if dynamics.point_is_state:
        return state.params, z.params

    point = dynamics.derivable("point", lambda s, at: dynamics.point(s, at, t), (state, step_hyper))
    return push_columns(point, (state, step_hyper), (z, lambda_dot))


def _resume_state(
    t: int, state: State, blocks: list[Columns], columns: SharedColumns, account: Account, engine: str
) -> dict[str, Any]:
    """What the run resumes from at step t."""
    states = columns.at_lead([block.state_dict() for block in blocks])
    num_hvps = columns.gather(account)
    return {"t": t, "state": state.state_dict(), "blocks": states, "num_hvps": num_hvps, "engine": engine}


def _resumed(
    account: Account, dynamics: Dynamics, columns: SharedColumns, carried: Carried
) -> tuple[int, State, Carried]:
    """t, s_t and Z_t where another process stopped, or at the start."""
    saved = account.resume()
    if saved is None:
        return 0, dynamics.start, carried
    state = State.from_state_dict(saved["state"], dynamics.like.device)
    account.counts.num_hvps = columns.continued(saved["num_hvps"])
    return saved["t"], state, carried.resumed_from(saved["blocks"], state)


def _contract(
    dynamics: Dynamics, state: State, blocks: list[Columns], columns: SharedColumns, by_params: Params, by_hyper: Hyper
) -> Hyper:
    """Returns dE/ds_T Z_T and the direct part of E in lambda, by the keys of lambda."""
    held = dynamics.layout.pack(by_params)
    total = torch.zeros(columns.num, dtype=torch.float64)
    for block in blocks:
        if block.active:
            result = dynamics.derivable("result", dynamics.result, (state,))
            _, w_dot = push_columns(result, (state,), (block.carried,))
            rows = [x.reshape(len(block.active), -1).to(held[name]) @ held[name].flatten() for name, x in w_dot.items()]
            total[block.active] = torch.stack([row.double() for row in rows]).sum(dim=0).cpu()
    parts = torch.split(columns.total(total), [value.numel() for value in by_hyper.values()])
    return {
        name: direct + part.view(direct.shape).to(direct)
        for (name, direct), part in zip(by_hyper.items(), parts, strict=True)
    }
