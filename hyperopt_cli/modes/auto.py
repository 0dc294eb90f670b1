"""Auto: plan once, then the mode that the plan chose.

Cost: of the chosen mode, and of a few measured steps (`planning/`) the first time. Prefer a mode by its name where runs
are to be compared: what is quickest depends on the machine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hyperopt_cli.checks.verdict import Verdict
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.sizes import size_of
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.base import Mode
from hyperopt_cli.modes.deciding import Deciding
from hyperopt_cli.modes.described import described, revived
from hyperopt_cli.modes.forward import Forward
from hyperopt_cli.modes.planning.plan import planned
from hyperopt_cli.modes.planning.predictions import spelled
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.modes.reverse import Reverse
from hyperopt_cli.modes.reversible import Reversible
from hyperopt_cli.problem import Hyper, Problem


class Chosen(NamedTuple):
    """A mode, what the plan calls it, and the reason."""

    mode: Mode
    name: str
    why: str


@dataclass(frozen=True)
class Auto(Deciding):
    """The quickest exact mode that fits into the memory.

    It plans at the first hypergradient, and again only for a problem of another size: an outer loop that holds one
    instance plans once. `stats["mode"]` is the mode that ran, `stats["plan"]` the reason.
    """

    _plans: dict[str, Chosen] = field(default_factory=dict, init=False, compare=False, repr=False)
    _known: list[Verdict] = field(default_factory=list, init=False, compare=False, repr=False)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of the modes that it has chosen."""
        modes = [chosen.mode for chosen in self._plans.values()]
        return tuple(verdict for mode in modes if isinstance(mode, Deciding) for verdict in mode.verdicts)

    def remember(self, verdicts: Iterable[Verdict]) -> None:
        """For the modes that it will choose."""
        self._known.extend(verdicts)

    @property
    def running(self) -> Mode:
        """The mode that is chosen, once one is."""
        return next((chosen.mode for chosen in reversed(self._plans.values())), self)

    def smaller(self, problem: Problem, hyper: Hyper) -> "Auto | None":
        """With the same plan, and the chosen mode made smaller."""
        less = None if self.running is self else self.running.smaller(problem, hyper)
        if less is None:
            return None
        key, chosen = next(reversed(self._plans.items()))
        why = f"{chosen.why}; made smaller, since it ran out of memory"
        other = replace(self)
        other._known.extend(self._known)
        other._plans.update({**self._plans, key: Chosen(less, spelled(less), why)})
        return other

    def differentiate(self, problem: Problem, hyper: Hyper, account: Account) -> Hypergradient:
        """By the mode that is chosen."""
        dynamics = Dynamics.of(problem, hyper)
        key = repr(size_of(dynamics, hyper))
        if key not in self._plans:
            plan = planned(dynamics, hyper)
            self._plans[key] = Chosen(plan.choice.mode, plan.choice.name, plan.why)
        chosen = self._plans[key]
        if isinstance(chosen.mode, Deciding):
            chosen.mode.remember(self._known)
        del dynamics  # its s_0, before the run makes its own
        out = chosen.mode.differentiate(problem, hyper, account)
        return out._replace(stats={**out.stats, "mode": chosen.name, "plan": chosen.why})

    def decisions(self) -> dict[str, Any]:
        """The plans, and what the modes that were chosen have decided."""
        plans = {
            key: {**described(chosen.mode), "name": chosen.name, "why": chosen.why}
            for key, chosen in self._plans.items()
        }
        return {"plans": plans}

    def decided(self, decisions: Mapping[str, Any]) -> None:
        """Plans that are followed instead of making new ones."""
        for key, kept in decisions.get("plans", {}).items():
            mode = revived(kept, (Forward, Reverse, Reversible))
            self._plans[key] = Chosen(mode, kept["name"], kept["why"])
