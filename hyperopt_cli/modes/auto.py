"""Auto: plan once, then the mode that the plan chose.

Cost: of the chosen mode, and of a few measured steps (`planning/`) the first time. Prefer a mode by its name where runs
are to be compared: what is quickest depends on the machine.
"""

from dataclasses import dataclass, field
from typing import Any

from torch.utils._pytree import tree_map

from hyperopt_cli.modes.base import Account, Hypergradient, Mode
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.modes.planning.plan import Plan, planned
from hyperopt_cli.problem import Hyper, Problem


@dataclass(frozen=True)
class Auto(Mode):
    """The quickest exact mode that fits into the memory.

    It plans at the first hypergradient, and again only for a problem of another size: an outer loop that holds one
    instance plans once. `stats["mode"]` is the mode that ran, `stats["plan"]` the reason.
    """

    _plans: dict[Any, Plan] = field(default_factory=dict, init=False, compare=False, repr=False)

    def differentiate(self, problem: Problem, hyper: Hyper, account: Account) -> Hypergradient:
        """By the mode that is chosen."""
        dynamics = Dynamics.of(problem, hyper)
        key = _size(dynamics, hyper)
        if key not in self._plans:
            self._plans[key] = planned(dynamics, hyper)
        plan = self._plans[key]
        del dynamics  # its s_0, before the run makes its own
        out = plan.choice.mode.differentiate(problem, hyper, account)
        return out._replace(stats={**out.stats, "mode": plan.choice.name, "plan": plan.why})


def _size(dynamics: Dynamics, hyper: Hyper) -> Any:
    """What two problems share if one plan serves both."""
    shapes = tree_map(lambda x: (x.shape, x.dtype, x.device), (hyper, dynamics.start))
    return dynamics.problem.steps, repr(dynamics.problem.optimizer), repr(shapes)
