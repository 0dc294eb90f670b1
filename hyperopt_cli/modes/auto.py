"""Auto: plan once, then the mode that the plan chose.

Cost: of the chosen mode, and of a few measured steps (`planning/`) the first time. Prefer a mode by its name where runs
are to be compared: what is quickest depends on the machine.
"""

from dataclasses import dataclass

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.sizes import size_of
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.base import Mode, mode_from_state_dict
from hyperopt_cli.modes.measurements import Chosen, Measurements
from hyperopt_cli.modes.planning.plan import planned
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import ALONE, Ranks


@dataclass(frozen=True)
class Auto(Mode):
    """The quickest exact mode that fits into the memory.

    It plans at the first hypergradient, and again only for a problem of another size than those whose plans are among
    the measurements. `stats["mode"]` is the mode that ran, `stats["plan"]` the reason.
    """

    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        """Takes the hypergradient by the mode that the plan chose, and plans first where no plan is known.

        Args:
            problem: the training run.
            hyper: lambda, detached.
            account: records the run.
            measurements: of earlier hypergradients; new ones are added.
        """
        dynamics = Dynamics.of(problem, hyper)
        size = repr(size_of(dynamics, hyper))
        if size not in measurements.plans:
            plan = planned(dynamics, hyper)
            measurements.plans[size] = Chosen(plan.choice.mode.state_dict(), plan.choice.name, plan.why)
        del dynamics  # its s_0, before the run makes its own
        chosen = measurements.plans[size]
        mode = mode_from_state_dict(chosen.settings)
        out = mode.differentiate(problem, hyper, account, measurements)
        return out._replace(stats={**out.stats, "mode": chosen.name, "plan": chosen.why})

    def chosen(self, measurements: Measurements) -> Mode:
        """Returns the mode of the last plan; itself while there is none."""
        plans = list(measurements.plans.values())
        return mode_from_state_dict(plans[-1].settings) if plans else self

    def smaller(
        self, problem: Problem, hyper: Hyper, measurements: Measurements, ranks: Ranks = ALONE
    ) -> "Auto | None":
        """Returns itself, with the mode of the last plan replaced by a smaller one; None where there is none.

        Args:
            problem: the training run.
            hyper: lambda.
            measurements: of earlier hypergradients.
            ranks: the processes that take the run together.
        """
        mode = self.chosen(measurements)
        less = None if mode is self else mode.smaller(problem, hyper, measurements, ranks)
        if less is None:
            return None
        size, chosen = next(reversed(measurements.plans.items()))
        why = f"{chosen.why}; made smaller, since it ran out of memory"
        measurements.plans[size] = Chosen(less.state_dict(), less.spelled, why)
        return self
