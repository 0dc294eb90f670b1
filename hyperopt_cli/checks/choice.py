"""Auto: which engine is the quickest on this problem, device, dtype and number of columns, of those that are right.

Every candidate is examined at step 0 (`examination.py`); those that pass take K columns of a few steps of the run
(`timing.py`), and the smallest median wins. Cost: `2 + repeats` tangent steps for each candidate, at most 5% of the
run. A horizon that is too short for one repeat takes the first engine of `BY_DEFAULT` that passes the examination. The
engines over a program are tried only where no other passes.

At later steps the engine in use is examined again, where a step is of a kind that was not met before and at a few
steps drawn by seed; one that is no longer right is replaced by the first that is.

The verdict depends on a clock: two runs may take two engines, whose results differ by rounding. Where bits matter, set
an engine by hand or keep the verdict.
"""

import math
from collections.abc import Callable, Mapping

from hyperopt_cli.checks.examination import Examination, is_of_memory
from hyperopt_cli.checks.setting import Setting
from hyperopt_cli.checks.timing import right_everywhere, timed
from hyperopt_cli.checks.verdict import Circumstances, Verdict
from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import NoMemoryError, UsageError
from hyperopt_cli.problem import Hyper
from hyperopt_cli.registry import ENGINES as REGISTERED
from hyperopt_cli.stopping import may_stop

WHERE_OTHERS_ARE_WRONG = tuple(name for name, each in REGISTERED.items() if each.taken == "where others are wrong")
BY_NAME = tuple(name for name, each in REGISTERED.items() if each.taken == "by name")
BY_DEFAULT = (
    *(name for name, each in REGISTERED.items() if each.taken == "measured"),
    *WHERE_OTHERS_ARE_WRONG,
)
SHARE_OF_RUN = 0.05
MAX_REPEATS = 5
EXAMINATION_AND_WARM_UP = 2  # tangent steps, about


def chosen(
    known: dict[Circumstances, Verdict], dynamics: Dynamics, hyper: Hyper, setting: Setting, examination: Examination
) -> Verdict:
    """Returns the verdict that is known to fit, if its engine is still right at `setting`; else decides anew.

    Args:
        known: verdicts by what they hold for; a new one is added.
        dynamics: of the run.
        hyper: lambda.
        setting: step 0 of the run.
        examination: of that step.

    Raises:
        UsageError: no candidate is right, or fits into the memory.
    """
    made_for = Circumstances.of(dynamics, hyper, setting.num_columns)
    verdict = known.get(made_for)
    if verdict is None or verdict.engine not in ENGINES or not examination.passes(verdict.engine):
        verdict = known[made_for] = decide(made_for, setting, examination, dynamics.watched_by(None).loss_at)
    return verdict


def decide(
    made_for: Circumstances, setting: Setting, examination: Examination, loss_at: Callable[[int], Loss]
) -> Verdict:
    """Examines, measures where the horizon repays it, and chooses.

    Args:
        made_for: kept with the verdict; its horizon says how much may be measured.
        setting: step 0 of the run.
        examination: of that step.
        loss_at: t -> the loss of step t.

    Raises:
        UsageError: no candidate is right, or fits into the memory.
    """
    names = [name for name in ENGINES if name not in (*BY_NAME, *WHERE_OTHERS_ARE_WRONG)]
    repeats = math.floor(SHARE_OF_RUN * made_for.steps / max(1, len(names))) - EXAMINATION_AND_WARM_UP
    if repeats < 1:
        return _by_default(made_for, examination, len(names))
    right = right_everywhere({name: ENGINES[name] for name in names if _passes(examination, name)}, names, setting.loss)
    if not right:
        return _by_default(made_for, examination, len(names))
    turns = min(MAX_REPEATS, repeats) + 1
    steps = [round(i * (made_for.steps - 1) / (turns - 1)) for i in range(turns)]
    times = timed(right, setting, loss_at, steps)
    disqualified = examination.reasons | times.disqualified
    if not times.step_s:
        raise _nothing_left(disqualified, examination)
    best = min(times.step_s, key=lambda name: times.step_s[name])
    why = _measured(best, times.step_s, setting.num_columns) + _disqualified(disqualified)
    return Verdict(best, why, made_for, times.step_s, dict(examination.errors), disqualified)


def _by_default(made_for: Circumstances, examination: Examination, num_candidates: int) -> Verdict:
    """The first right one, without measuring."""
    name = replacement(examination)
    least = math.ceil((EXAMINATION_AND_WARM_UP + 1) * num_candidates / SHARE_OF_RUN)
    if name in WHERE_OTHERS_ARE_WRONG:
        why = "the only one that is right"
    else:
        why = f"the default, for measuring takes a horizon of {least} steps to repay it"
    why += _disqualified(examination.reasons)
    return Verdict(name, why, made_for, {}, dict(examination.errors), dict(examination.reasons))


def replacement(examination: Examination) -> str:
    """Returns the first engine that is right at a step.

    Raises:
        UsageError: none is, or fits into the memory.
    """
    names = [name for name in BY_DEFAULT if name in ENGINES]
    rest = [name for name in ENGINES if name not in (*names, *BY_NAME)]
    name = next((name for name in (*names, *rest) if _passes(examination, name)), None)
    if name is None:
        raise _nothing_left(examination.reasons, examination)
    return name


def _passes(examination: Examination, name: str) -> bool:
    may_stop()
    return examination.passes(name)


def _measured(best: str, step_s: Mapping[str, float], num_columns: int) -> str:
    """What it takes, and what the next one takes."""
    columns = "1 column" if num_columns == 1 else f"{num_columns} columns"
    takes = f"{1000 * step_s[best]:.3g} ms a step of {columns}"
    others = sorted((seconds, name) for name, seconds in step_s.items() if name != best)
    if not others:
        return f"{takes}, the only one that is right and fits"
    return f"{takes}, the quickest of {len(step_s)} ({others[0][1]}: {1000 * others[0][0]:.3g} ms)"


def _disqualified(disqualified: Mapping[str, str]) -> str:
    """Who was disqualified, and why."""
    return "".join(f"; {name} disqualified: {_bare(name, reason)}" for name, reason in disqualified.items())


def _nothing_left(disqualified: Mapping[str, str], examination: Examination) -> UsageError:
    reasons = "; ".join(f"{name}: {_bare(name, reason)}" for name, reason in disqualified.items())
    if any(map(is_of_memory, disqualified.values())):
        return NoMemoryError(
            f"engine: none is left ({reasons}); use the mode reverse, smaller batches or columns_at_once"
        )
    return UsageError(
        f"engine: none is left at step {examination.t} ({reasons}){examination.constructs}; what leaves torch "
        "and comes back (item(), numpy()) has no derivative, nor has an operator that is named here: write it with "
        "torch's differentiable operators, or try the mode reverse"
    )


def _bare(name: str, reason: str) -> str:
    return reason.removeprefix(f"engine {name}: ")
