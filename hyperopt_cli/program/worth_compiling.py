"""`compile: auto`: whether a horizon repays compiling its step.

    T x seconds a step x SAVED  >  seconds to compile, as the number of operators predicts them

A step that is compiled is then timed against the step as torch runs it, and the quicker one is taken.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hyperopt_cli.errors import HyperoptError
from hyperopt_cli.program.failures import is_of_compiling, reason_without
from hyperopt_cli.stopping import may_stop

SAVED = 0.25  # of a step, before it is known; seen: 0.1 to 0.7
SECONDS, SECONDS_PER_OPERATOR = 5.0, 0.04  # seen on two cores: 5 s at 250 operators, 40 s at 770, 150 s at 3,400
REPEATS = 3


@dataclass(frozen=True)
class Compilation:
    """Whether a step is compiled, and why, a phrase."""

    compiled: bool
    why: str

    @property
    def failed(self) -> bool:
        """Whether it was tried in vain."""
        return not self.compiled and self.why.startswith("not compiled (")


def decide(
    compile: bool | str,
    steps: int,
    eager: Callable[[], Any],
    compiled: Callable[[], Any],
    num_operators: Callable[[], int],
) -> Compilation:
    """Decides whether a step is compiled.

    Args:
        compile: true, false or "auto".
        steps: T.
        eager: one step as torch runs it.
        compiled: the same step, compiled at the first call.
        num_operators: of the step.

    Raises:
        UsageError: compiling was asked for, and cannot be done; with the reason.
        VerificationError: it was asked for, and gave something else.
    """
    if compile is not True and compile != "auto":
        return Compilation(False, "not compiled")
    try:
        if compile is True:
            compiled()
            return Compilation(True, "compiled, as asked for")
        if not may_repay(steps * _once(eager)) or not may_repay(steps * (before := _seconds(eager))):
            return Compilation(False, f"not compiled, for a horizon of {steps} steps does not repay it")
        takes = expected_s(num_operators())
        if steps * before * SAVED < takes:
            why = f"not compiled, for {steps} steps of {_shown(before)} do not repay some {takes:.0f} s"
            return Compilation(False, why)
        after = _seconds(compiled)
    except HyperoptError as error:
        if compile is True or not is_of_compiling(error):
            raise
        return Compilation(False, reason_without(error))
    if after < before:
        return Compilation(True, f"compiled: {_shown(after)} a step instead of {_shown(before)}")
    return Compilation(False, f"not compiled, for a step took {_shown(after)} instead of {_shown(before)}")


def expected_s(num_operators: int) -> float:
    """Returns about how many seconds compiling a step takes."""
    return SECONDS + SECONDS_PER_OPERATOR * num_operators


def may_repay(seconds: float) -> bool:
    """Returns whether a run of so many seconds is long enough to try."""
    return seconds * SAVED >= SECONDS


def _seconds(call: Callable[[], Any]) -> float:
    """The least of a few calls, after one to warm up."""
    _once(call)
    return min(_once(call) for _ in range(REPEATS))


def _once(call: Callable[[], Any]) -> float:
    may_stop()
    began = time.perf_counter()
    result = call()
    for device in {x.device for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_cuda}:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _shown(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
