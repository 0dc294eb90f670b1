"""What no mode can differentiate, by name, before a mode fails on it: asked of w_0 and of the graphs of both losses."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from hyperopt_cli.checks.replayed import terms
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.kinds import nodes_of
from hyperopt_cli.errors import UsageError
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper


def check_constructs(dynamics: Dynamics, hyper: Hyper) -> None:
    """Looks at the parameters, and at the graphs of the training loss of step 0 and of the first chunk of E.

    Raises:
        UsageError: a parameter is no tensor of real floating-point numbers, or a loss is made such that torch gives no
            dense gradient of it.
    """
    problem = dynamics.problem
    params = problem.initial(hyper)
    check_parameters(params)
    loss = next(terms(dynamics.loss_at(0)))
    w = {name: w.detach().requires_grad_() for name, w in params.items()}
    _check_graph("inner_loss", lambda: loss(w, dynamics.hyper_at(hyper, 0)))
    for arguments, _ in islice(problem.outer_chunks(), 1):
        _check_graph("outer_loss", partial(problem.validation_loss, w, hyper, *arguments))


def _check_graph(what: str, loss: Callable[[], Tensor]) -> None:
    made: list[Tensor] = []  # before torch 2.13 the node of a user's own Function has no name once its tensor is gone
    with suppress(Exception), torch.enable_grad():  # what fails is said by the checks that follow
        made.append(loss())
    for node in (node for value in made for node in nodes_of(value)):
        if node.name() == "CheckpointFunctionBackward":
            raise UsageError(
                f"{what}: got torch.utils.checkpoint with use_reentrant=True, through which torch.autograd.grad "
                "cannot go; pass use_reentrant=False"
            )
        if getattr(node, "_saved_sparse", False) or getattr(node, "_saved_sparse_grad", False):
            raise UsageError(
                f"{what}: got an operator with a sparse gradient ({node.name()}: sparse=True of an embedding, "
                "sparse_grad=True of gather); leave that out: the numbers are the same, and every mode keeps dense "
                "tangents or adjoints"
            )


def check_parameters(params: Params) -> None:
    """Raises `UsageError` where one is not real or not floating-point, with what to do."""
    for name, w in params.items():
        if w.is_complex():
            raise UsageError(
                f"init: {name} is complex ({w.dtype}); parameters are real: give torch.view_as_real(...), and let the "
                "loss take torch.view_as_complex of it"
            )
        if not w.is_floating_point():
            raise UsageError(
                f"init: {name} is a {w.dtype} tensor; parameters are floating-point tensors: give what is not trained "
                "(a buffer, a counter) to the loss by a closure, or in the batch"
            )
