"""Forward mode: the tangents of the state are carried along with the run.

Synonyms: forward-mode hypergradient, RTHO's exact version, "FDS" when learning rates share windows.

    Z_{t+1} = A_t Z_t + B_t,    Z_t = ds_t/dlambda [K columns]
    dE/dlambda = dE/ds_T Z_T + dE/dlambda

Franceschi et al. 2017, algorithm 2 (Forward-HG), https://proceedings.mlr.press/v70/franceschi17a.

The product is taken column by column of the same step: the tangent of the gradient comes from an engine, the rest is
the Jacobian-vector product of the update rule,

    g'_k = H w'_k + d2L/dw dlambda lambda'_k,     s'_k <- dU (s'_k, g'_k, lambda'_k)

Cost: T (1 gradient + K tangents). Memory: K + 1 states, whatever T.

Prefer reverse or reversible for many hyperparameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from hyperopt_cli.checks.engine_judge import EngineJudge, TakenWronglyError
from hyperopt_cli.checks.setting import Setting
from hyperopt_cli.checks.verdict import Circumstances, Verdict
from hyperopt_cli.dynamics.derivatives import push_columns
from hyperopt_cli.dynamics.dynamics import Dynamics, State, train_step
from hyperopt_cli.dynamics.stepping import StepAt
from hyperopt_cli.engines import ENGINES, Engine, check_name
from hyperopt_cli.errors import NonDeterministicError, NonFiniteError, UsageError, VerificationError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.columns import Carried, Columns, divided
from hyperopt_cli.modes.deciding import Compiling
from hyperopt_cli.modes.directions import LambdaAt, tangents_of_schedule
from hyperopt_cli.modes.objective import outer_objective
from hyperopt_cli.modes.result import Hypergradient, stats_of_checks
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Batch, Hyper, Problem
from hyperopt_cli.program import WholeStep
from hyperopt_cli.ranks.group import Ranks

TANGENT = "the tangent of the training loss"


@dataclass(frozen=True)
class Forward(Compiling):
    """Forward mode.

    `stats["engine"]` is the engine that ran last; where `auto` chose it, `stats["engine_why"]` is the reason. At step 0
    of each run, at steps of a kind that was not met before and at a few drawn by seed, its tangents are compared with
    central differences of the training gradient (`checks/examination.py`).

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
    _judge: EngineJudge = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.engine)
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size: got {self.chunk_size}; a chunk has at least 1 column")
        self._check_compile()
        object.__setattr__(self, "_judge", EngineJudge(self.engine))

    def differentiate(self, problem: Problem, hyper: Hyper, account: Account) -> Hypergradient:
        """Franceschi et al. 2017, algorithm 2."""
        self.check_ranks(sum(value.numel() for value in hyper.values()), problem.ranks)
        if len(self._blocks(problem, hyper)) > 1:  # each of them takes the batch
            problem = replace(problem, batch=lru_cache(maxsize=1)(problem.batch))
        dynamics = self._judge.watching(Dynamics.of(problem, hyper), hyper, account.examines)
        lambda_at = tangents_of_schedule(dynamics, hyper)
        verdict = self._verdict(dynamics, hyper, lambda_at)
        if (saved := account.peek("engine")) is not None and saved in ENGINES:
            verdict = replace(verdict, engine=saved)  # another process may have chosen another one
        if problem.ranks.size > 1:
            account.barrier()
            verdict = replace(verdict, engine=problem.ranks.agreed(verdict.engine))
        try:
            return self._differentiated(dynamics, hyper, lambda_at, verdict, account)
        except TakenWronglyError as found:
            self._known[found.verdict.made_for] = found.verdict
            account.restart()
        except (UsageError, VerificationError) as error:
            self._give_up(verdict, error)
            account.restart()
        return self.differentiate(problem, hyper, account)

    def _differentiated(
        self, dynamics: Dynamics, hyper: Hyper, lambda_at: LambdaAt, verdict: Verdict, account: Account
    ) -> Hypergradient:
        problem = dynamics.problem
        assert verdict.compilation is not None
        step = self._step(dynamics, verdict.engine, verdict.compilation.compiled)
        carried = Carried.at_start(dynamics, hyper, self._blocks(problem, hyper), padded=step.is_compiled)
        account.growth.tangents(0, [block.z.params for block in carried.blocks])
        first, state, carried = _resumed(account, dynamics, carried)
        self._judge.watch.met.clear()

        def save(at: int) -> None:
            of_run = problem.ranks, account, verdict.engine
            account.save_if_due(lambda: _resume_state(at, state, carried.blocks, *of_run))

        for t in range(first, problem.steps):
            before, engine = (state, carried), verdict.engine
            setting_of = partial(_setting, dynamics, lambda_at, t, state)
            try:
                state, carried = _advanced(dynamics, step, lambda_at, *before, t, account)
            except (NonFiniteError, UsageError, RuntimeError) as error:
                verdict = self._without(setting_of, verdict, step.is_compiled, error)
            else:
                verdict = self._judge.look(dynamics, t, setting_of, verdict)
            if verdict.engine != engine:
                step = self._step(dynamics, verdict.engine, compiled=False)
                account.retake(t, sum(len(block.active) for block in carried.blocks))
                state, carried = _advanced(dynamics, step, lambda_at, *before, t, account)
            del before, setting_of
            account.growth.tangents(t + 1, [block.z.params for block in carried.blocks])
            account.progress.step_done("forward", t + 1, problem.steps)
            save(t + 1)
        params = dynamics.layout.unpack(dynamics.result(state))
        objective = outer_objective(problem, params, hyper, partial(save, problem.steps), self._judge.outer)
        if problem.ranks.size > 1:
            account.finite.check()
            account.barrier()
        grad = _contract(dynamics, state, carried.blocks, objective.by_params, objective.by_hyper)
        account.counts.num_hvps = _of_all(problem.ranks, account.counts.num_hvps)
        account.growth.of_all(problem.ranks)
        result = account.close(objective.value, grad, params)
        why = {"engine_why": verdict.why} if self.engine == "auto" else {}
        told = {"engine": verdict.engine, **why, **self._told(verdict.compilation)}
        told |= stats_of_checks(self._judge.said)
        return result._replace(stats={**result.stats, **told})

    def smaller(self, problem: Problem, hyper: Hyper) -> "Forward | None":
        """With half as many columns at once; Z itself stays as large as it is."""
        at_once = max(len(block) for block in self._blocks(problem, hyper))
        if at_once <= 1:
            return None
        less = replace(self, chunk_size=-(-at_once // 2))
        less.remember(self.verdicts)
        return less

    def _blocks(self, problem: Problem, hyper: Hyper) -> list[list[int]]:
        """The columns that are treated at once, by this process."""
        num, ranks = sum(value.numel() for value in hyper.values()), problem.ranks
        return divided(num, self.chunk_size, *((ranks.rank, ranks.size) if ranks.divides("columns") else (0, 1)))

    def check_ranks(self, num: int, ranks: Ranks) -> None:
        """Raises `UsageError` where there is not a block of the `num` columns for each rank."""
        blocks = len(divided(num, self.chunk_size or 1))
        if ranks.divides("columns") and blocks < ranks.size:
            smaller = "" if blocks == num else f"a chunk_size of at most {max(1, num // ranks.size)}, "
            raise UsageError(
                f"shard: columns: got {ranks.size} ranks for {num} columns in {blocks} blocks; use at most {blocks} "
                f"ranks, {smaller}or shard: batch"
            )

    def _verdict(self, dynamics: Dynamics, hyper: Hyper, lambda_at: LambdaAt) -> Verdict:
        """The engine of this run, found right at step 0, and whether the step is compiled."""
        plain, directions = lambda_at(0)
        block = self._blocks(dynamics.problem, hyper)[0]
        directions = tree_map(lambda x: x[block], directions)
        setting = Setting.of(dynamics, 0, dynamics.start, plain, directions, None)
        verdict = self._judge.at_start(self._known, dynamics, hyper, setting)
        drawn = torch.Generator().manual_seed(0)  # at Z = 0 no product with H would be compared

        def rows(x: Tensor) -> Tensor:
            return torch.randn(setting.num_columns, *x.shape, generator=drawn, dtype=x.dtype).to(x.device)

        z = tree_map(rows, dynamics.start)
        step = self._step(dynamics, verdict.engine, compiled=False)
        return self._settled(verdict, step, 0, dynamics.start, z, setting.hyper, setting.hyper_dot)

    def _without(
        self, setting_of: Callable[[], Setting], verdict: Verdict, compiled: bool, error: Exception
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
        return self._judge.instead(setting, verdict, error, of_tangent)

    def _step(self, dynamics: Dynamics, engine: str, compiled: bool) -> StepAt:
        return self._step_at(dynamics, engine, partial(tangent_step, engine=ENGINES[engine]), compiled)


def _setting(dynamics: Dynamics, lambda_at: LambdaAt, t: int, state: State) -> Setting:
    return Setting.of(dynamics, t, state, *lambda_at(t), None)


def _advanced(
    dynamics: Dynamics, step: StepAt, lambda_at: LambdaAt, state: State, carried: Carried, t: int, account: Account
) -> tuple[State, Carried]:
    """s_t, Z_t -> s_{t+1}, Z_{t+1}."""
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
    """s_{t+1}, Z_{t+1}, L and its tangents."""
    layout = dynamics.layout
    point, point_dot = _point_tangents(dynamics, state, z, step_hyper, lambda_dot, t)
    loss = dynamics.loss_on(batch)
    out = engine(loss, layout.unpack(point), step_hyper, layout.unpack(point_dot, 1), lambda_dot, None)
    primals = (state, layout.pack(out.grads), step_hyper)
    update = dynamics.derivable("update", lambda s, g, at: dynamics.update(s, g, at, t), primals)
    after, z_after = push_columns(update, primals, (z, layout.pack(out.grad_tangents, 1), lambda_dot))
    return after, z_after, out.loss, out.loss_tangents


def _point_tangents(
    dynamics: Dynamics, state: State, z: State, step_hyper: StepHyper, lambda_dot: StepHyper, t: int
) -> tuple[Params, Params]:
    """P(s_t, lambda_t) and its tangents."""
    if dynamics.point_is_state:
        return state.params, z.params

    point = dynamics.derivable("point", lambda s, at: dynamics.point(s, at, t), (state, step_hyper))
    return push_columns(point, (state, step_hyper), (z, lambda_dot))


def _resume_state(
    t: int, state: State, blocks: list[Columns], ranks: Ranks, account: Account, engine: str
) -> dict[str, Any]:
    """What the run resumes from at step t, on the lead: with the columns of all ranks."""
    states = [block.state_dict() for block in blocks]
    if ranks.divides("columns"):
        parts = ranks.at_lead(tree_map_only(Tensor, lambda x: x.cpu(), states))
        states = [block for part in parts for block in part]
    num_hvps = _of_all(ranks, account.counts.num_hvps)
    account.growth.of_all(ranks)
    return {"t": t, "state": state.state_dict(), "blocks": states, "num_hvps": num_hvps, "engine": engine}


def _resumed(account: Account, dynamics: Dynamics, carried: Carried) -> tuple[int, State, Carried]:
    """t, s_t and Z_t where another process stopped, or at the start."""
    saved = account.resume()
    if saved is None:
        return 0, dynamics.start, carried
    state = State.from_state_dict(saved["state"], dynamics.like.device)
    account.counts.num_hvps = saved["num_hvps"] if dynamics.problem.ranks.is_lead else 0
    return saved["t"], state, carried.resumed_from(saved["blocks"], state)


def _of_all(ranks: Ranks, num: int) -> int:
    return int(ranks.summed(torch.tensor(num))) if ranks.divides("columns") else num


def _contract(dynamics: Dynamics, state: State, blocks: list[Columns], by_params: Params, by_hyper: Hyper) -> Hyper:
    """dE/ds_T Z_T + dE/dlambda, per key."""
    held = dynamics.layout.pack(by_params)
    total = torch.zeros(sum(value.numel() for value in by_hyper.values()), dtype=torch.float64)
    for block in blocks:
        if block.active:
            result = dynamics.derivable("result", dynamics.result, (state,))
            _, w_dot = push_columns(result, (state,), (block.carried,))
            rows = [x.reshape(len(block.active), -1).to(held[name]) @ held[name].flatten() for name, x in w_dot.items()]
            total[block.active] = torch.stack([row.double() for row in rows]).sum(dim=0).cpu()
    if dynamics.problem.ranks.divides("columns"):
        total = dynamics.problem.ranks.summed(total)  # each element is one rank's, and zero elsewhere: no rounding
    parts = torch.split(total, [value.numel() for value in by_hyper.values()])
    return {
        name: direct + part.view(direct.shape).to(direct)
        for (name, direct), part in zip(by_hyper.items(), parts, strict=True)
    }
