"""Auto: the mode of the lowest price that is allowed, by counts alone.

A gradient costs 1, a product with the Hessian or a tangent 2, for each of T steps (`Mode.price`), so that

    forward      2 K + 1
    reverse      4, whatever is kept or recomputed
    reversible   4

It follows from K, T, the size of a state and `memory`, never from a clock or from what is free here: it is the same on
every machine and on every process of a run, it is taken once, and it is written into the run. Of reverse and reversible
it is reverse with all T states where these fit into `memory`; with as many as fit where fewer than `MOST_REPEATED` T
steps are then taken; else reversible, where the rule can be reversed; else reverse with what fits.

Prefer a mode by its name where you know better; `hyperopt plan` measures what each of them would take on a machine.
"""

from dataclasses import dataclass
from typing import NamedTuple

from hyperopt_cli.byte_sizes import bytes_text, parsed_bytes
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.sizes import size_of
from hyperopt_cli.memory import state_bytes
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.binomial import num_forward_steps
from hyperopt_cli.modes.base import Mode, mode_from_state_dict
from hyperopt_cli.modes.forward import Forward
from hyperopt_cli.modes.measurements import Chosen, Measurements
from hyperopt_cli.modes.result import Hypergradient
from hyperopt_cli.modes.reverse import Reverse
from hyperopt_cli.modes.reversible import Reversible, refusal
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import ALONE, Ranks

MOST_REPEATED = 3.0  # times T steps that are taken with slots, before reversible is preferred


class Choice(NamedTuple):
    """A mode, and why it was chosen, in a sentence."""

    mode: Mode
    why: str


@dataclass(frozen=True)
class Auto(Mode):
    """The mode of the lowest price.

    `stats["mode"]` is the mode that ran, `stats["plan"]` the reason.

    Args:
        memory: what the states that reverse mode keeps may take: a number of bytes, or text such as "2GiB".

    Raises:
        ValueError: `memory` is neither.
    """

    memory: int | str = "2GiB"

    def __post_init__(self) -> None:
        self.memory_bytes()

    def memory_bytes(self) -> int:
        """Returns `memory` in bytes.

        Raises:
            ValueError: it is neither a number above 0 nor a number with a unit.
        """
        if isinstance(self.memory, bool):
            raise ValueError(f"memory: got {self.memory}; give a number of bytes, or text such as 2GiB")
        try:
            return parsed_bytes(str(self.memory))
        except ValueError as error:
            raise ValueError(f"memory: {error}") from None

    def price(self, num: int, steps: int) -> float:
        """Returns the lower of the two prices that there are.

        Args:
            num: the number of hyperparameters K.
            steps: the horizon T.
        """
        return min(Forward().price(num, steps), Reverse().price(num, steps))

    def differentiate(
        self, problem: Problem, hyper: Hyper, account: Account, measurements: Measurements
    ) -> Hypergradient:
        """Takes the hypergradient by the mode that was chosen, and chooses where none was for a problem of this size.

        Args:
            problem: the training run.
            hyper: lambda, detached.
            account: records the run.
            measurements: of earlier hypergradients; new ones are added.
        """
        dynamics = Dynamics.of(problem, hyper)
        size = repr(size_of(dynamics, hyper))
        if size not in measurements.plans:
            made = choice(dynamics, hyper, self.memory_bytes())
            measurements.plans[size] = Chosen(made.mode.state_dict(), made.mode.spelled, made.why)
        del dynamics  # its s_0, before the run makes its own
        chosen = measurements.plans[size]
        mode = mode_from_state_dict(chosen.settings)
        out = mode.differentiate(problem, hyper, account, measurements)
        return out._replace(stats={**out.stats, "mode": chosen.name, "plan": chosen.why})

    def chosen(self, measurements: Measurements) -> Mode:
        """Returns the mode that was chosen last; itself while there is none."""
        plans = list(measurements.plans.values())
        return mode_from_state_dict(plans[-1].settings) if plans else self

    def smaller(
        self, problem: Problem, hyper: Hyper, measurements: Measurements, ranks: Ranks = ALONE
    ) -> "Auto | None":
        """Returns itself, with the mode that was chosen last replaced by a smaller one; None where there is none.

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


def choice(dynamics: Dynamics, hyper: Hyper, memory_bytes: int) -> Choice:
    """Returns the mode of the lowest price that is allowed.

    Args:
        dynamics: of the run, at `hyper`.
        hyper: lambda.
        memory_bytes: what kept states may take.
    """
    problem, state = dynamics.problem, max(1, state_bytes(dynamics.start))
    num, steps = sum(value.numel() for value in hyper.values()), problem.steps
    by_forward, by_reverse = Forward().price(num, steps), Reverse().price(num, steps)
    prices = f"in plain runs forward costs {by_forward:g} and reverse {by_reverse:g}"
    if by_forward < by_reverse:
        return Choice(Forward(), f"{prices}, for {num} number")
    states, room = bytes_text(steps * state), bytes_text(memory_bytes)
    if steps * state <= memory_bytes:
        return Choice(Reverse(), f"{prices}; its {steps} states take {states} of {room} (mode.memory)")
    slots = max(1, memory_bytes // state)
    lacks = f"{prices}; its {steps} states would take {states} of {room} (mode.memory)"
    if num_forward_steps(steps, slots) <= MOST_REPEATED * steps:
        return Choice(Reverse(slots=slots), f"{lacks}, so it keeps {slots}")
    if (reason := refusal(problem, hyper)) is None:
        return Choice(Reversible(), f"{lacks}, so it is run backwards")
    return Choice(Reverse(slots=slots), f"{lacks}, so it keeps {slots}, for it cannot be reversed: {reason}")
