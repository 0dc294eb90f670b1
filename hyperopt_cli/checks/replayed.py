"""A step that is taken twice must give the same twice: batch, loss and gradient; and must leave nothing behind.

Modes evaluate a step more often than training does. A draw without a seed, a counter, a data set that augments at
random, running statistics would make each evaluation another one's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hyperopt_cli.checks.no_writes import Unwritten
from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss, Loss
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.errors import NonDeterministicError
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Chunked

ROUNDED = 1e-3  # of L, by a compiled step or in lower precision
ROUNDING = 100.0  # of eps: what a sum is off by whose terms cancel


def terms(loss: Loss) -> Iterator[Loss]:
    """Yields the terms of L: L itself, or the losses of its chunks."""
    yield from (chunk for chunk, _ in loss.chunks()) if isinstance(loss, ChunkedLoss) else (loss,)


def due_term(loss: Loss, looks: int) -> int:
    """Returns the index of the term that is examined whatever its kind: another one at each look."""
    return looks % max(1, sum(1 for _ in terms(loss))) if isinstance(loss, ChunkedLoss) else 0


def slack(x: Tensor) -> Tensor | float:
    """Returns how far two evaluations may be apart: on a GPU the order of a sum may change from one to the next."""
    if not x.numel():
        return 0.0
    of_cpu = max(1e-10, 8 * torch.finfo(x.dtype).eps) if x.is_floating_point() else 0.0
    return (of_cpu if x.device.type == "cpu" else 1e-3) * x.abs().max()


def rounded_away(gradient: Sequence[Tensor]) -> float:
    """Returns how far two evaluations of a gradient may be apart besides, on a device that sums in any order (a GPU).

    A bias in front of a normalization has a gradient of 0: what is left of it is rounding of terms as large as those of
    the other parameters, another one each time.
    """
    parts = [x for x in gradient if x.numel() and x.is_floating_point() and x.device.type != "cpu"]
    if not parts:
        return 0.0
    return ROUNDING * max(torch.finfo(x.dtype).eps for x in parts) * max(float(x.detach().abs().max()) for x in parts)


def check_evaluated(what: str, once: Sequence[Tensor], again: Sequence[Tensor]) -> None:
    """Compares two evaluations of a loss and its gradient, each as one list.

    Raises:
        NonDeterministicError: they differ.
    """
    check_equal(what, once[:1], again[:1])
    check_equal(what, once[1:], again[1:], rounded_away(once[1:]))


def check_equal(what: str, once: Sequence[Tensor], again: Sequence[Tensor], apart: float = 0.0) -> None:
    """Compares two evaluations of the same tensors.

    Args:
        what: names what was evaluated, for the message.
        once: the tensors of one evaluation.
        again: those of the other.
        apart: by how much they may differ beside the rounding that `slack` allows for each.

    Raises:
        NonDeterministicError: they differ by more.
    """
    for x, y in zip(once, again, strict=True):
        x, y = x.detach(), y.detach()
        if not torch.equal(x.isnan(), y.isnan()) or bool(((x - y).abs() > slack(x) + apart).any()):
            raise NonDeterministicError(
                f"{what}: evaluated twice, it gave {_shown(x)} and {_shown(y)}; every draw must be a function of the "
                "batch (batch(t) carries a seed), and batch(t) a function of t"
            )


def check_step(dynamics: Dynamics, params: Params, hyper: StepHyper, t: int) -> None:
    """Takes the batch of a step twice, and the gradient of its first term, with another step in between.

    Args:
        dynamics: of the run.
        params: w, named, where the loss is evaluated.
        hyper: lambda_t.
        t: the step.

    Raises:
        NonDeterministicError: the two differ.
        UsageError: the loss writes into a tensor that outlives it.
    """
    one, other = dynamics.problem.batch(t), dynamics.problem.batch(t)
    if not isinstance(one, Chunked):
        check_equal(f"batch({t})", _floating(one), _floating(other))
    once, again = (next(terms(dynamics.loss_on(batch))) for batch in (one, other))
    with Unwritten(f"inner_loss at step {t}"):
        first = loss_and_gradient(once, params, hyper)
    with torch.enable_grad():  # step 0 elsewhere in between: whatever the loss keeps of w is another now
        next(terms(dynamics.loss_at(0)))({name: (1.01 * w).requires_grad_() for name, w in params.items()}, hyper)
    check_evaluated(f"inner_loss at step {t}", first, loss_and_gradient(again, params, hyper))


def leaves_of(params: Params) -> Params:
    """Returns the same numbers as leaves that require a gradient."""
    return {name: w.detach().requires_grad_() for name, w in params.items()}


def loss_and_gradient(loss: Loss, params: Params, hyper: StepHyper) -> list[Tensor]:
    """Evaluates L and g, and returns them as one list."""
    with torch.enable_grad():
        w = leaves_of(params)
        value = loss(w, hyper)
        return [value, *torch.autograd.grad(value, list(w.values()), materialize_grads=True)]


def _floating(batch: Any) -> list[Tensor]:
    return [x.double() for x in tree_leaves(batch) if isinstance(x, Tensor) and not x.is_complex()]


def _shown(x: Tensor) -> str:
    return repr(float(x)) if x.ndim == 0 else f"values of norm {float(torch.linalg.vector_norm(x))!r}"
