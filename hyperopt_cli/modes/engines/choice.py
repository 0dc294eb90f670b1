"""Auto: which engine is the quickest on this problem, device, dtype and number of columns, of those that are right.

Every candidate is examined (`examination.py`); those that pass take K columns of a few steps of the run (`timing.py`),
and the smallest median wins. Cost: `2 + repeats` tangent steps for each candidate, at most 5% of the run. A horizon
that is too short for one repeat takes the first engine of `BY_DEFAULT` that passes the examination.

The verdict depends on a clock: two runs may take two engines, whose results differ by rounding. Where bits matter, set
an engine by hand or keep the verdict.
"""

import math
from collections.abc import Callable, Mapping

from hyperopt_cli.errors import NoMemoryError, UsageError
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.modes.engines import ENGINES
from hyperopt_cli.modes.engines.base import Loss
from hyperopt_cli.modes.engines.examination import check_agreement, examined, is_of_memory, reason_of
from hyperopt_cli.modes.engines.setting import Setting
from hyperopt_cli.modes.engines.symmetry import check_symmetry
from hyperopt_cli.modes.engines.timing import timed
from hyperopt_cli.modes.engines.verdict import Circumstances, Verdict
from hyperopt_cli.problem import Hyper
from hyperopt_cli.stopping import may_stop

REFERENCE = "reverse_over_reverse_loop"
BY_DEFAULT = ("folded", "forward_over_reverse", "reverse_over_reverse", REFERENCE)
CHECKS_ONLY = ("dense",)
SHARE_OF_RUN = 0.05
MAX_REPEATS = 5
EXAMINATION_AND_WARM_UP = 2  # tangent steps, about


def chosen(known: dict[Circumstances, Verdict], dynamics: Dynamics, hyper: Hyper, setting: Setting) -> Verdict:
    """The verdict that is known to fit, if its engine is still right at `setting`; else a new one, kept in `known`.

    Raises:
        UsageError: no candidate is right, or fits into the memory.
    """
    made_for = Circumstances.of(dynamics, hyper, setting.num_columns, setting.chunk_size)
    verdict = known.get(made_for)
    if verdict is None or not _holds(verdict, setting):
        verdict = known[made_for] = decided(made_for, setting, dynamics.loss_at)
    return verdict


def check_given(name: str, setting: Setting) -> None:
    """An engine that was set by hand is symmetric, and agrees with the reference.

    Raises:
        UsageError: it does not.
    """
    check_symmetry(f"engine {name}", ENGINES[name], setting)
    check_agreement(f"engine {name}", ENGINES[name], ENGINES[REFERENCE], setting)


def _holds(verdict: Verdict, setting: Setting) -> bool:
    """Whether the engine is there, runs and is right: sizes may be the same where the model is another."""
    if verdict.engine not in ENGINES:
        return False
    try:
        check_given(verdict.engine, setting)
    except (UsageError, RuntimeError) as error:
        reason_of(error)  # which raises what is neither a refusal nor a lack of memory
        return False
    return True


def decided(made_for: Circumstances, setting: Setting, loss_at: Callable[[int], Loss]) -> Verdict:
    """Examines, measures where the horizon repays it, and chooses.

    Args:
        made_for: kept with the verdict; its horizon says how much may be measured.
        setting: step 0 of the run.
        loss_at: t -> the loss of step t.

    Raises:
        UsageError: no candidate is right, or fits into the memory.
    """
    names = [name for name in ENGINES if name not in CHECKS_ONLY]
    repeats = math.floor(SHARE_OF_RUN * made_for.steps / len(names)) - EXAMINATION_AND_WARM_UP
    if repeats < 1:
        return _by_default(made_for, setting, len(names))
    tried = _Tried(setting)
    right = {name: ENGINES[name] for name in names if tried.passes(name)}
    turns = min(MAX_REPEATS, repeats) + 1
    steps = [round(i * (made_for.steps - 1) / (turns - 1)) for i in range(turns)]
    times = timed(right, setting, loss_at, steps)
    disqualified = tried.disqualified | times.disqualified
    if not times.step_s:
        raise _nothing_left(disqualified)
    best = min(times.step_s, key=lambda name: times.step_s[name])
    why = _measured(best, times.step_s, setting.num_columns) + _told(disqualified)
    return Verdict(best, why, made_for, times.step_s, tried.errors, tried.asymmetries, disqualified)


def _by_default(made_for: Circumstances, setting: Setting, num_candidates: int) -> Verdict:
    """The first right one, without measuring."""
    tried = _Tried(setting)
    name = next((name for name in BY_DEFAULT if name in ENGINES and tried.passes(name)), None)
    if name is None:
        raise _nothing_left(tried.disqualified)
    least = math.ceil((EXAMINATION_AND_WARM_UP + 1) * num_candidates / SHARE_OF_RUN)
    why = f"the default, for measuring takes a horizon of {least} steps to repay it" + _told(tried.disqualified)
    return Verdict(name, why, made_for, {}, tried.errors, tried.asymmetries, tried.disqualified)


class _Tried:
    """The examinations of one setting; the reference is examined first."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._reference = examined(ENGINES[REFERENCE], setting, None, one_by_one=True)
        self._all = {REFERENCE: self._reference}

    def passes(self, name: str) -> bool:
        """Whether the engine runs, and is right."""
        may_stop()
        if name not in self._all:
            loop = name.endswith("_loop")
            found = examined(ENGINES[name], self._setting, self._reference.products, one_by_one=loop)
            self._all[name] = found._replace(products=None)  # only the reference's are needed again
        return self._all[name].reason is None

    @property
    def disqualified(self) -> dict[str, str]:
        """Reasons, by engine."""
        return {name: each.reason for name, each in self._all.items() if each.reason is not None}

    @property
    def errors(self) -> dict[str, float]:
        """Differences from the reference."""
        return _figures({name: each.error for name, each in self._all.items()})

    @property
    def asymmetries(self) -> dict[str, float]:
        """Of the products."""
        return _figures({name: each.asymmetry for name, each in self._all.items()})


def _figures(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: figure for name, figure in found.items() if figure is not None}


def _measured(best: str, step_s: Mapping[str, float], num_columns: int) -> str:
    """What it takes, and what the next one takes."""
    columns = "1 column" if num_columns == 1 else f"{num_columns} columns"
    takes = f"{1000 * step_s[best]:.3g} ms a step of {columns}"
    others = sorted((seconds, name) for name, seconds in step_s.items() if name != best)
    if not others:
        return f"{takes}, the only one that is right and fits"
    return f"{takes}, the quickest of {len(step_s)} ({others[0][1]}: {1000 * others[0][0]:.3g} ms)"


def _told(disqualified: Mapping[str, str]) -> str:
    """Who was disqualified, and why."""
    return "".join(f"; {name} disqualified: {_bare(name, reason)}" for name, reason in disqualified.items())


def _nothing_left(disqualified: Mapping[str, str]) -> UsageError:
    reasons = "; ".join(f"{name}: {_bare(name, reason)}" for name, reason in disqualified.items())
    kind = NoMemoryError if any(map(is_of_memory, disqualified.values())) else UsageError
    return kind(f"engine: none is left ({reasons}); use the mode reverse, smaller batches or a chunk_size")


def _bare(name: str, reason: str) -> str:
    return reason.removeprefix(f"engine {name}: ")
