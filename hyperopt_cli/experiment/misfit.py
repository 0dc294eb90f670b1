"""Do model, data and loss fit together? Tried on one batch and one chunk, before a run directory is made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hyperopt_cli.data.batches import Batch, Data
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.errors import HyperoptError, Issue
from hyperopt_cli.experiment.experiment import Experiment, seeded, trained


def misfit(experiment: Experiment) -> Issue | None:
    """What is wrong with the first training batch or the first chunk of the validation loss; None if they work."""
    model = experiment.make_model(derive(experiment.seed, "init"))
    starts = {
        hp.name: hp.value_at({}, 0) for hp in experiment.space.hyperparameters if hp.name in experiment.loss_names
    }
    if experiment.data is None:
        return _tried(experiment, model, None, starts)
    batch = _first_batch(experiment.data, experiment.seed)
    chunk, _ = experiment.data.validation[0]
    return _tried(experiment, model, batch, starts) or _tried(experiment, model.eval(), chunk, {})


def _first_batch(data: Data, seed: int) -> Batch:
    """What the model is called with first: a batch, or a chunk of it."""
    if not data.in_chunks:
        return data.batches(seed)(0)
    return next(iter(data.batches_in_chunks(seed)(0)))[0]


def _tried(experiment: Experiment, model: nn.Module, batch: Batch | None, driven: dict[str, Tensor]) -> Issue | None:
    inputs = () if batch is None else (batch.inputs,)
    shown = f"inputs of shape {[list(x.shape) for x in inputs]}"
    with seeded(0, experiment.device):
        outputs, said = _called(lambda: functional_call(model, dict[str, Tensor](trained(model)), inputs))
    if said:
        return Issue(("model",), f"with {shown} it raised {said}")
    if not isinstance(outputs, Tensor):
        return Issue(("model", "call"), f"it returned a {type(outputs).__name__}; must return one tensor")
    targets = None if batch is None else batch.targets
    shown = f"outputs of shape {list(outputs.shape)}"
    if targets is not None:
        shown += f" and targets of shape {list(targets.shape)}, {targets.dtype}"
    loss, said = _called(lambda: experiment.loss(outputs, targets, **driven))
    if said:
        return Issue(("loss",), f"with {shown} it raised {said}")
    if not isinstance(loss, Tensor) or loss.ndim > 0 or not loss.is_floating_point():
        got = f"a tensor of shape {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        return Issue(("loss",), f"it returned {got}; must return one floating-point number, a tensor of shape []")
    if not loss.requires_grad:
        return Issue(("loss",), "it depends on no parameter of the model (detached, or an argmax on the way?)")
    return None


def _called(function: Callable[[], Any]) -> tuple[Any, str]:
    try:
        with torch.enable_grad():
            return function(), ""
    except HyperoptError:
        raise
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
