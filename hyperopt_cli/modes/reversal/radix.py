"""Where the binary point of every number lies: so low that nothing wraps, so high that nothing small is lost.

    radix_i = min(preferred, 62 - HEADROOM - log2 size_i)

An element has a radix of its own: beside a gradient of 1,000 one of 1e-5 keeps its digits, and with them its second
moment, by whose root Adam divides. size_i is the largest |x_i| of a trial in floating point: one step, and for a slot
what it grows to if that step is repeated, |x| / (1 - f). Where a number outgrows its radix later, the trial is made as
far as that step, and the run begins anew; elements whose size is not known yet then start 8 bits lower, so that it
happens a few times at the most.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.dynamics import Dynamics, State, train_step
from hyperopt_cli.errors import FixedPointRangeError, NonFiniteError
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.reversal.factors import Factors
from hyperopt_cli.optimizers.base import WEIGHTS, Params
from hyperopt_cli.optimizers.exact import LIMIT, Radix
from hyperopt_cli.problem import Hyper
from hyperopt_cli.stopping import stoppable

HEADROOM = 6  # bits that a number may grow by beyond the trial
LOWERED = 8

Radixes = dict[str, dict[str, Radix]]  # of w and every slot, by the names that the state is held under


def parts(state: State) -> dict[str, Params]:
    """Returns w and the slots by their names."""
    return {WEIGHTS: state.params, **state.slots}


def chosen(
    dynamics: Dynamics,
    hyper: Hyper,
    factors: Factors,
    given: Mapping[str, int],
    steps: int,
    attempt: int,
    account: Account,
) -> Radixes:
    """Chooses the radixes for a run, from a trial of `steps` steps.

    Args:
        dynamics: at the factors in use.
        hyper: lambda.
        factors: those.
        given: set by hand, for all elements alike.
        steps: of the trial, at least 1.
        attempt: how often the run has begun anew.
        account: counts the trial's steps.

    Raises:
        FixedPointRangeError: a number leaves even the smallest radix.
        NonFiniteError: a number is not finite.
    """
    preferred = {c.name: (c.radix - LOWERED * attempt, c.least_radix) for c in factors.couplings}
    radixes: Radixes = {}
    for part, named in parts(_largest(dynamics, hyper, factors, steps, account)).items():
        if not all(bool(size.isfinite().all()) for size in named.values()):
            raise NonFiniteError(steps - 1, part)
        if part in given:
            largest = max(float(size.max()) for size in named.values())
            if largest * 2.0 ** given[part] >= LIMIT:
                raise FixedPointRangeError(steps - 1, part, largest, given[part], given)
            radixes[part] = dict.fromkeys(named, given[part])
            continue
        highest, least = preferred[part]
        radixes[part] = {name: _radix(size, max(highest, least)) for name, size in named.items()}
        for name, size in named.items():
            if _smallest(radixes[part][name]) < least:
                raise FixedPointRangeError(steps - 1, part, float(size.max()), least, given)
    return radixes


def _radix(size: Tensor, highest: int) -> Radix:
    """One for all elements where the highest fits them, else int8 like `size`."""
    fitting = (62 - HEADROOM - torch.frexp(size.double()).exponent).clamp(max=highest)
    fitting = torch.where(size == 0, highest, fitting)
    return highest if int(fitting.min()) == highest else fitting.clamp(min=-128).to(torch.int8)


def _smallest(radix: Radix) -> int:
    return radix if isinstance(radix, int) else int(radix.min())


def _largest(dynamics: Dynamics, hyper: Hyper, factors: Factors, steps: int, account: Account) -> State:
    """The largest |x| of every number on the way."""
    state = dynamics.start
    largest: State = tree_map(torch.abs, state)
    for t in stoppable(range(steps)):
        state, _ = train_step(dynamics, dynamics.problem.batch(t), t, state, dynamics.hyper_at(hyper, t))
        account.counts.add_steps(1)
        seen: State = tree_map(torch.abs, state)
        if t == 0:
            seen = seen._replace(slots={slot: _repeated(x, factors, slot) for slot, x in seen.slots.items()})
        largest = tree_map(torch.maximum, largest, seen)
    return largest


def _repeated(named: Params, factors: Factors, slot: str) -> Params:
    """|x| / (1 - f): what a slot grows to if every step is as the first."""
    i = [coupling.name for coupling in factors.couplings].index(slot)
    by = factors.at(0)[i]
    if by is None:
        return named
    return {name: x / (1 - by[name].value.abs()).abs().clamp(min=2.0**-20).to(x) for name, x in named.items()}
