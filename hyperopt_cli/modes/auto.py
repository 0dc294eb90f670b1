"""Auto: plan once, then the mode that the plan chose.

Cost: of the chosen mode, and of a few measured steps (`planning/`) the first time. Prefer a mode by its name where runs
are to be compared: what is quickest depends on the machine.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hyperopt_cli.modes.base import Account, Hypergradient
from hyperopt_cli.modes.deciding import Deciding
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.modes.engines.verdict import Verdict
from hyperopt_cli.modes.planning.plan import Plan, planned
from hyperopt_cli.modes.sizes import size_of
from hyperopt_cli.problem import Hyper, Problem


@dataclass(frozen=True)
class Auto(Deciding):
    """The quickest exact mode that fits into the memory.

    It plans at the first hypergradient, and again only for a problem of another size: an outer loop that holds one
    instance plans once. `stats["mode"]` is the mode that ran, `stats["plan"]` the reason.
    """

    _plans: dict[Any, Plan] = field(default_factory=dict, init=False, compare=False, repr=False)
    _known: list[Verdict] = field(default_factory=list, init=False, compare=False, repr=False)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of the modes that it has chosen."""
        modes = [plan.choice.mode for plan in self._plans.values()]
        return tuple(verdict for mode in modes if isinstance(mode, Deciding) for verdict in mode.verdicts)

    def remember(self, verdicts: Iterable[Verdict]) -> None:
        """For the modes that it will choose."""
        self._known.extend(verdicts)

    def differentiate(self, problem: Problem, hyper: Hyper, account: Account) -> Hypergradient:
        """By the mode that is chosen."""
        dynamics = Dynamics.of(problem, hyper)
        key = size_of(dynamics, hyper)
        if key not in self._plans:
            self._plans[key] = planned(dynamics, hyper)
        plan = self._plans[key]
        if isinstance(plan.choice.mode, Deciding):
            plan.choice.mode.remember(self._known)
        del dynamics  # its s_0, before the run makes its own
        out = plan.choice.mode.differentiate(problem, hyper, account)
        return out._replace(stats={**out.stats, "mode": plan.choice.name, "plan": plan.why})
