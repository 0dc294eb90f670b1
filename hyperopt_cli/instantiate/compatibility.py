"""Do model, data and loss fit together? Tried on a batch, a chunk and every class, before a run directory is made."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hyperopt_cli.data.batches import Batch
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.data.splits import is_integral
from hyperopt_cli.errors import Issue
from hyperopt_cli.instantiate.accuracy import has_classes
from hyperopt_cli.instantiate.broadcasting import broadcast
from hyperopt_cli.instantiate.cutting import cut_wrongly
from hyperopt_cli.instantiate.experiment import Experiment, seeded, trained
from hyperopt_cli.instantiate.models import attempted


def incompatibility(experiment: Experiment) -> Issue | None:
    """Returns what is wrong with model, data and loss together; None if they work.

    Tried are the first training batch (or chunk of one) with its gradient, the first chunks of the validation and of
    the test split, and the loss of every class.
    """
    model = experiment.make_model(derive(experiment.seed, "init"))
    starts = {
        hp.name: hp.value_at({}, 0).to(experiment.device)
        for hp in experiment.space.hyperparameters
        if hp.name in experiment.loss_names
    }
    data = experiment.data
    if data is None:
        return _tried(experiment, model, None, starts)[0]
    if data.steps.in_chunks:
        first = next(iter(data.steps.batches_in_chunks(experiment.seed)(0)))[0]
    else:
        first = data.steps.batches(experiment.seed)(0)
    issue, outputs = _tried(experiment, model, first, starts)
    if issue is not None:
        return issue
    assert outputs is not None
    return (
        _mislabelled(experiment, outputs.detach(), starts)
        or _tried(experiment, model.eval(), data.validation[0][0], {})[0]
        or _scored(experiment, model)
        or cut_wrongly(experiment, starts)
    )


def _tried(
    experiment: Experiment, model: nn.Module, batch: Batch | None, driven: dict[str, Tensor]
) -> tuple[Issue | None, Tensor | None]:
    """Returns what is wrong with the loss of a batch or its gradient, and the model's outputs."""
    inputs = () if batch is None else (batch.inputs,)
    shown = f"inputs of shape {[list(x.shape) for x in inputs]}"
    params = dict[str, Tensor](trained(model))
    with seeded(0, experiment.device):
        outputs, failure = attempted(lambda: functional_call(model, params, inputs))
    if failure:
        return Issue(("model",), f"with {shown} it raised {failure}"), None
    if not isinstance(outputs, Tensor):
        return Issue(("model", "call"), f"it returned a {type(outputs).__name__}; must return one tensor"), None
    targets = None if batch is None else batch.targets
    shown = f"outputs of shape {list(outputs.shape)}"
    if targets is not None:
        shown += f" and targets of shape {list(targets.shape)}, {targets.dtype}"
    driven = {name: x.detach().requires_grad_() for name, x in driven.items()}
    loss, failure = attempted(lambda: experiment.loss_of(outputs, targets, **driven))
    if failure:
        failure += _may_be_a_number(experiment, outputs, targets, driven)
        return Issue(("loss",), f"with {shown} it raised {failure}"), None
    if not isinstance(loss, Tensor) or loss.ndim > 0 or not loss.is_floating_point():
        got = f"a tensor of shape {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        return Issue(("loss",), f"it returned {got}; must return one floating-point number, a tensor of shape []"), None
    if not loss.requires_grad:
        return Issue(("loss",), "it depends on no parameter of the model (detached, or an argmax on the way?)"), None
    if not bool(loss.isfinite()):
        odd = (
            "the inputs of the first batch hold numbers that are not finite"
            if any(x.is_floating_point() and not bool(x.isfinite().all()) for x in inputs)
            else "give a smaller init_scale, or mend the model or the loss"
        )
        return Issue(("loss",), f"with {shown} it is {loss.item()} before the first step: {odd}"), None
    if targets is not None and (seen := broadcast(lambda: experiment.loss_of(outputs, targets), outputs, targets)):
        return Issue(
            ("loss",),
            f"with {shown} it broadcasts one against the other ({seen}), so that every output meets every target; "
            "bring both to one shape, e.g. outputs.reshape(targets.shape), or give targets of the outputs' shape",
        ), None
    grads, failure = attempted(lambda: torch.autograd.grad(loss, list(params.values()), allow_unused=True))
    if failure:
        return Issue(("loss",), f"with {shown} its gradient raised {failure}"), None
    for name, grad in zip(params, grads, strict=True):
        if grad is not None and grad.layout != torch.strided:
            message = f"the gradient of {name} is {grad.layout}; leave out sparse=True, derivatives need a dense one"
            return Issue(("model",), message), None
    return None, outputs


def _may_be_a_number(experiment: Experiment, outputs: Tensor, targets: Tensor | None, driven: dict[str, Tensor]) -> str:
    """Returns what to do where a loss works with numbers, and not with tensors, for its hyperparameters."""
    plain = {name: x.item() for name, x in driven.items() if x.numel() == 1}
    if not plain or attempted(lambda: experiment.loss_of(outputs, targets, **{**driven, **plain}))[1]:
        return ""
    return (
        f". It takes {', '.join(plain)} as a number, in which nothing is differentiated: compute with the tensor that "
        "it is given, or fix it under loss"
    )


def _mislabelled(experiment: Experiment, outputs: Tensor, driven: dict[str, Tensor]) -> Issue | None:
    """Returns an issue for a label that the loss cannot take, and names its example."""
    assert experiment.data is not None
    class_dim, ignored = experiment.class_dim, experiment.loss.ignore_index
    outputs, driven = outputs.cpu(), {name: x.cpu() for name, x in driven.items()}  # a GPU would not survive one
    for name, targets in experiment.data.targets.items():
        if not is_integral(targets):
            continue
        bad, failure = None, ""
        if not experiment.loss.of_classes and targets.ndim == 1 and outputs.ndim:
            bad, failure = _refused(experiment, outputs, targets, driven)
        elif experiment.loss.of_classes and targets.shape[1:] == outputs.select(class_dim, 0).shape[1:]:
            num = outputs.shape[class_dim]
            bad = ((targets < 0) | (targets >= num)) & (targets != ignored)
            failure = f"allowed are 0 ... {num - 1}, and {ignored} for what is ignored"
        if bad is not None and bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            return Issue(
                ("dataset",),
                f"example {first} of the {name} split has a label that the loss cannot take ({failure}; the model's "
                f"outputs are of shape {list(outputs.shape)}). {int(bad.sum())} labels are so: mend them, or the "
                "number of classes of the model",
            )
    return None


def _refused(
    experiment: Experiment, outputs: Tensor, targets: Tensor, driven: dict[str, Tensor]
) -> tuple[Tensor | None, str]:
    """Returns where targets have the first label on which a user's loss raises an error, and that error."""

    def raised(labels: Tensor) -> str:
        given = labels.repeat(-(-len(outputs) // len(labels)))[: len(outputs)]
        return attempted(lambda: experiment.loss_of(outputs, given, **driven))[1]

    for labels in torch.unique(targets).long().cpu().split(len(outputs)):
        if raised(labels):
            for label in labels:
                if failure := raised(label[None]):
                    return targets == label, f"on {int(label)} it raised {failure}"
    return None, ""


def _scored(experiment: Experiment, model: nn.Module) -> Issue | None:
    """Tries the figures of the test split on its first chunk, which a run takes only after its last step."""
    data = experiment.data
    if data is None or data.test is None:
        return None
    (inputs, targets, _), _ = data.test[0]
    outputs, failure = attempted(lambda: model(inputs).detach())
    if failure:
        return Issue(("model",), f"with inputs of the test split, {list(inputs.shape)}, it raised {failure}")
    shapes = f"outputs of shape {list(outputs.shape)} and targets of shape {list(targets.shape)}"
    _, failure = attempted(lambda: float(experiment.loss_of(outputs, targets)))
    if failure:
        return Issue(("loss",), f"on the test split, with {shapes}, it raised {failure}")
    _, failure = attempted(lambda: experiment.counts(outputs, targets))
    if failure:
        return Issue(("model",), f"with {shapes} the accuracy raised {failure}")
    if data.num_classes is None:
        return None
    if not has_classes(outputs, targets, experiment.class_dim) and has_classes(outputs, targets, -1):
        return Issue(
            ("model",),
            f"with {shapes} there is no accuracy: classes are looked for in dimension {experiment.class_dim}. Where "
            "they are in the last one, let the model say so, by an attribute class_dim = -1",
        )
    return None
