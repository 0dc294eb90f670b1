"""A mode that decides something by measuring: what it decided can be read, and given to another that need not measure.

Whoever runs the mode keeps the verdicts; a mode knows of no file.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from hyperopt_cli.checks.verdict import Circumstances, Verdict
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.stepping import StepAt
from hyperopt_cli.errors import UsageError, VerificationError
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.program import Compilation, WholeStep, cannot_compile, decided
from hyperopt_cli.program.failures import is_of_compiling, reason_without
from hyperopt_cli.ranks.group import Ranks


class Deciding(Mode):
    """A mode that decides."""

    @property
    @abstractmethod
    def verdicts(self) -> tuple[Verdict, ...]:
        """What it has decided so far, the first first."""

    @abstractmethod
    def remember(self, verdicts: Iterable[Verdict]) -> None:
        """Takes over verdicts; one that fits a problem is used in place of measuring."""


class Compiling(Deciding):
    """A mode that decides whether its steps are compiled.

    Attributes:
        compile: true, false, or "auto": where the horizon repays it (`program/repaying.py`).
    """

    compile: bool | str
    _known: dict[Circumstances, Verdict]
    _whole: dict[str, Any]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """By what they were made for."""
        return tuple(self._known.values())

    def remember(self, verdicts: Iterable[Verdict]) -> None:
        """By what they were made for."""
        self._known.update({verdict.made_for: verdict for verdict in verdicts})

    def decisions(self) -> dict[str, Any]:
        """The verdicts."""
        return {"verdicts": [json.dumps(verdict.to_json()) for verdict in self.verdicts]}

    def decided(self, decisions: Mapping[str, Any]) -> None:
        """They hold for this run."""
        self.remember(Verdict.from_json(json.loads(each)) for each in decisions.get("verdicts", ()))

    def _check_compile(self) -> None:
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile: got {self.compile!r}; allowed are True, False and 'auto'")

    def _step_at(self, dynamics: Dynamics, name: str, function: Callable[..., Any], compiled: bool) -> StepAt:
        """The step `(t, state, tangents, ...)` of that name; what was compiled for it before is found again."""
        return StepAt(dynamics, function, self._whole.setdefault(name, WholeStep(linear=2)), compiled)

    def _settled(self, verdict: Verdict, step: StepAt, *example: Any) -> Verdict:
        """`verdict` with a decision on compiling, from `step` at `example`."""
        if step.ranks.size > 1:
            return replace(verdict, compilation=self._uncompiled(step.ranks))
        known = verdict.compilation
        if self.compile != "auto" or known is None or (known.compiled and cannot_compile() is not None):
            made = decided(
                self.compile,
                verdict.made_for.steps,
                lambda: step.eager(*example),
                lambda: step.compiled(*example),
                lambda: step.num_operators(*example),
            )
            verdict = replace(verdict, compilation=made)
        if self.compile == "auto" or verdict.made_for in self._known:  # otherwise nothing was decided
            self._known[verdict.made_for] = verdict
        return verdict

    def _uncompiled(self, ranks: Ranks) -> Compilation:
        """Of a run that several processes take together.

        Compiled for different numbers of columns, steps round differently: the runs of ranks would part. A part of a
        batch ends in a sum over all ranks, of which there is no graph.
        """
        if self.compile is True:
            raise UsageError(f"compile: got true with shard: {ranks.shard} over {ranks.size} ranks; leave compile out")
        return Compilation(False, f"not compiled, for {ranks.size} ranks take the run together")

    def _give_up(self, verdict: Verdict, error: UsageError | VerificationError) -> None:
        """Goes on without compiling after a step that could not be, where that was not asked for; else raises."""
        compilation = verdict.compilation
        if self.compile != "auto" or compilation is None or not compilation.compiled or not is_of_compiling(error):
            raise error
        self._known[verdict.made_for] = replace(verdict, compilation=Compilation(False, reason_without(error)))

    def _told(self, compilation: Compilation | None) -> dict[str, Any]:
        """What a run says of it."""
        if compilation is None or not compilation.compiled:
            why = {"compiled_why": compilation.why} if compilation is not None and compilation.failed else {}
            return {"compiled": False, **why}
        return {"compiled": True, "compiled_why": compilation.why}
