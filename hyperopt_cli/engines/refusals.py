"""No engine falls back silently: what torch cannot batch or differentiate is said, with the operator and a way out.

Where an operator has no batching rule, `vmap` takes the columns one by one and warns of "a performance drop because we
have not yet implemented the batching rule". Here it may not: an engine that is asked for batches or refuses.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.engines.base import Engine, Tangents
from hyperopt_cli.errors import UsageError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.optimizers.base import Params, StepHyper

# What torch says, and what that means; the group is the operator.
FALLBACK = r"(\S+) hit the vmap fallback"
MESSAGES = {
    FALLBACK: "has no batching rule",
    r"forward AD with (\S+) that does not support it": "has no forward derivative",
    r"derivative for '?([^' ]+?):?(?: \w+)?'? is not implemented": "has no second derivative",
    r"(once_differentiable)": "has no second derivative",
    r"double backwards on (\S+) not supported": "has no second derivative",
    r"(Expected a proper Tensor but got None)": "is what layer normalisation with a bias alone says, for one: its "
    "second derivative cannot be taken",
    r"(torch\.linalg\.lu_factor): U": "met a singular matrix, of which the derivative cannot be taken",
    r"(ZeroTensors) are immutable": "(tangents of a constant) are written into by an operator whose forward derivative "
    "cannot be taken",
    r"override the (setup_context|jvp|vmap) staticmethod": "is missing from an autograd.Function of the model",
    r"(saved tensor hooks)": "(torch.utils.checkpoint inside of the model) cannot be taken",
    r"(\.numpy\(\))": "of a tensor inside of the model cannot be taken",
    r"(data pointer)": "of a tensor inside of the model (numpy()) cannot be taken",
    r"(\S*(?:vmap|jvp|functorch|forward AD|forward-mode)\S*)": "cannot be taken",
}
WAYS_OUT = {
    "has no batching rule": "use forward_over_reverse_loop or reverse_over_reverse_loop, which take the columns one by "
    "one, or the mode reverse",
    "has no second derivative": "use forward_over_reverse_loop, if it has a forward derivative, or another operator: "
    "the mode reverse needs it too",
}
OTHERWISE = "use reverse_over_reverse_loop, or the mode reverse"


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turns what torch cannot do inside into a `UsageError` that names the engine `name` and the operator."""
    functorch: Any = torch._C._functorch
    allowed = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        found = None if is_lacking(error) else _reading(str(error))
        if found is None:
            raise
        operator, what = found
        way_out = WAYS_OUT.get(what, OTHERWISE)
        raise UsageError(f"engine {name}: {operator} {what} ({_first_line(error)}); {way_out}") from error
    finally:
        functorch._set_vmap_fallback_enabled(allowed)


def strict(name: str, function: Engine) -> Engine:
    """Wraps an engine in `refusing`; `__wrapped__` is the function itself, for whoever compiles it."""

    @wraps(function)
    def engine(loss: Loss, params: Params, hyper: StepHyper, w_dot: Params, hyper_dot: StepHyper) -> Tangents:
        with refusing(name):
            return function(loss, params, hyper, w_dot, hyper_dot)

    return engine


def _reading(message: str) -> tuple[str, str] | None:
    for pattern, what in MESSAGES.items():
        if (found := re.search(pattern, message)) is not None:
            return found[1], what
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].split(". Please file")[0].removesuffix(".")
