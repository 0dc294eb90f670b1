"""Which engine forward mode takes through a step: one that differences confirm there (`examination.py`).

Step 0 is examined in each run that can afford it, then every step of a kind that was not met before, and a few drawn by
seed; there the batch and the gradient are taken twice as well. An engine that is not right at a new kind of step is
replaced from there on; one that is wrong at a kind that it took before has spoilt the run, which begins again.
"""

from collections.abc import Callable
from dataclasses import replace

from hyperopt_cli.checks.choice import chosen, replacement
from hyperopt_cli.checks.examination import Examination, check_given
from hyperopt_cli.checks.judge import NOT_JUDGED
from hyperopt_cli.checks.outer import OuterJudge
from hyperopt_cli.checks.replayed import check_step, due_term, terms
from hyperopt_cli.checks.rule import Rules, check_rule, not_judged
from hyperopt_cli.checks.setting import Setting
from hyperopt_cli.checks.verdict import Circumstances, Verdict
from hyperopt_cli.checks.watch import Watch
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.kinds import Kind
from hyperopt_cli.errors import UsageError, first_line
from hyperopt_cli.problem import Hyper

AUTO = "auto"


class TakenWronglyError(Exception):
    """An engine is wrong at a step of a kind that it took before: the run begins again with another."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class EngineJudge:
    """What is known of the engines at the steps of a problem, over its runs.

    Args:
        given: the engine that was set by hand, or `AUTO`.

    Attributes:
        watch: says which steps are examined.
        outer: of E.
    """

    def __init__(self, given: str) -> None:
        self.watch, self.outer = Watch(), OuterJudge()
        self._given = given
        self._rules: dict[str, Rules] = {}
        self._not_judged: set[Kind] = set()
        self._right: dict[str, set[Kind]] = {}
        self._wrong: dict[str, set[Kind]] = {}

    def watching(self, dynamics: Dynamics, hyper: Hyper, examines: bool) -> Dynamics:
        """Begins a run: returns the same dynamics, watched, with right derivatives of what is cheap.

        Args:
            dynamics: of the run.
            hyper: lambda.
            examines: whether anything is examined.

        Raises:
            UsageError: `init`, the schedule or the update rule has a derivative that is not that of its value.
        """
        is_new = self.watch.begin(dynamics.problem, examines)
        if is_new or self.watch.affords:
            self._right.clear()
            self._wrong.clear()
        if is_new:
            self._not_judged.clear()
            self._rules.clear()
            self.outer.forget()
        self.outer.begin(examines, self.watch.affords)
        if examines:
            dynamics = replace(dynamics, as_operators=check_rule(dynamics, hyper, "jvp", self._rules).as_operators)
        return dynamics.watched_by(self.watch)

    @property
    def notes(self) -> list[str]:
        """What the user has to be told of the hypergradient."""
        of_steps = [NOT_JUDGED] if self._not_judged else []
        return [*self.outer.notes, *not_judged(self._rules), *of_steps]

    def at_start(
        self, known: dict[Circumstances, Verdict], dynamics: Dynamics, hyper: Hyper, setting: Setting
    ) -> Verdict:
        """Returns the engine of a run, found right at step 0.

        Args:
            known: what `auto` chose in earlier runs; a new choice is added.
            dynamics: of the run.
            hyper: lambda.
            setting: step 0.

        Raises:
            UsageError: none is right, or the one that was set by hand is not.
        """
        made_for = Circumstances.of(dynamics, hyper, setting.num_columns)
        before = known.get(made_for) if self._given == AUTO else Verdict(self._given, "set by hand", made_for)
        if before is not None and self._right.get(before.engine):  # right in earlier runs, and no more can be afforded
            return before
        with self.watch.clocked():
            examination = Examination(setting)
            if before is None or self._given == AUTO:
                verdict = chosen(known, dynamics, hyper, setting, examination)
            else:
                check_given(self._given, examination)
                verdict = before
            self._confirm(verdict.engine, examination)
        return verdict

    def look(self, dynamics: Dynamics, t: int, setting_of: Callable[[], Setting], verdict: Verdict) -> Verdict:
        """Returns, after step t, the verdict with an engine that is right there too, where it is examined.

        Args:
            dynamics: of the run.
            t: the step.
            setting_of: makes the step that was taken.
            verdict: whose engine took it.

        Raises:
            UsageError: none is right, or the one that was set by hand is not.
            NonDeterministicError: taken twice, the step gives two results.
            TakenWronglyError: the engine is wrong at a kind of step that it took before.
        """
        new = self.watch.taken(t, self._right.setdefault(verdict.engine, set()))
        if new is None:
            return verdict
        if new & self._wrong.get(verdict.engine, set()):  # met again: what took its place then does so now
            for name, kinds in self._right.items():
                if new <= kinds:
                    return replace(verdict, engine=name)
        with self.watch.clocked():
            return self._looked(dynamics, setting_of(), verdict, new)

    def _looked(self, dynamics: Dynamics, setting: Setting, verdict: Verdict, new: set[Kind]) -> Verdict:
        check_step(dynamics.watched_by(None), setting.params, setting.hyper, setting.t)
        rest, due = set(new), due_term(setting.loss, self.watch.looks)
        for i, term in enumerate(terms(setting.loss)):
            examination = Examination(setting._replace(loss=term))
            if i != due and not (rest and examination.kinds & rest):
                continue
            if self._given != AUTO:
                check_given(self._given, examination)
            elif not examination.passes(verdict.engine):
                met_before = examination.kinds & self._right[verdict.engine]
                verdict = self._replaced(verdict, examination)
                if met_before:
                    raise TakenWronglyError(verdict)
            self._confirm(verdict.engine, examination)
            rest -= examination.kinds
        self._right.setdefault(verdict.engine, set()).update(rest)  # of many kinds, those that are not examined
        return verdict

    def instead(self, setting: Setting, verdict: Verdict, error: Exception, of_tangent: bool) -> Verdict:
        """Returns another engine where this one fails, or has a tangent that is not finite though the loss is.

        Args:
            setting: the step.
            verdict: whose engine fails.
            error: that it raised.
            of_tangent: it is the tangent that is not finite.

        Raises:
            Exception: `error`, where it is not of the engine, or the tangents of the run are too large for any.
            UsageError: no engine is left; or one was set by hand, and another has a finite tangent.
        """
        examination = Examination(setting)
        reason = f"its tangent is not finite at step {setting.t}, and the loss is" if of_tangent else first_line(error)
        examination.reasons[verdict.engine] = reason
        try:
            examination.truth  # noqa: B018
            verdict = self._replaced(verdict, examination)
        except UsageError as none_left:
            if of_tangent and examination.is_finite(verdict.engine):
                raise error from None
            raise none_left from error
        except RuntimeError:  # plain training fails there too
            raise error from None
        if self._given != AUTO:
            check_given(self._given, examination)
        self.watch.taken(setting.t, set())
        self._confirm(verdict.engine, examination)
        return verdict

    def _confirm(self, engine: str, examination: Examination) -> None:
        """The engine is right at steps of this kind."""
        self._right.setdefault(engine, set()).update(examination.kinds)
        if engine in examination.not_judged:
            self._not_judged.update(examination.kinds)

    def _replaced(self, verdict: Verdict, examination: Examination) -> Verdict:
        engine = replacement(examination)
        self._wrong.setdefault(verdict.engine, set()).update(examination.kinds)
        why = f"{verdict.why}; from step {examination.t} on {engine}, for {verdict.engine} is not right there"
        return replace(verdict, engine=engine, why=f"{why} ({examination.reasons[verdict.engine]})")
