"""A user's model as derivatives can take it: nothing compiled, materialised, with dense gradients, free of graphs.

The values are those of the model as it was written. A compiled part would be an opaque step that is differentiated only
once, a lazy parameter has no shape yet, a sparse gradient has none of the operators that a tangent needs, and a tensor
that hangs on the graph of the model's constructor (`torch.nn.utils.weight_norm`) can't be copied.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hyperopt_cli.errors import HyperoptError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.models.batch_norm import use_batch_statistics
from hyperopt_cli.problem import uncompiled


def prepared(
    model: nn.Module, device: torch.device, dtype: torch.dtype, example: Callable[[], tuple[Tensor, ...]]
) -> nn.Module:
    """Returns the model in training mode, on the device, with batch statistics in place of running ones.

    Args:
        model: changed in place, or what it wraps.
        device: the device that it is moved to.
        dtype: the dtype of its floating-point parameters.
        example: what the model is called with, for one with lazy parameters.
    """
    model = _uncompiled(model).to(device, dtype)
    if any(is_lazy(x) for x in [*model.parameters(), *model.buffers()]):
        with torch.no_grad(), uncompiled():
            model.eval()(*example())
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(module, name, value.detach())
    use_batch_statistics(model.train())
    return model


def attempted(function: Callable[[], Any]) -> tuple[Any, str]:
    """Returns what the user's code returned, and in words what it raised; a lack of memory is raised on."""
    try:
        with torch.enable_grad(), uncompiled():
            return function(), ""
    except HyperoptError:
        raise
    except Exception as error:
        if is_lacking(error):
            raise
        return None, f"{type(error).__name__}: {error}"


def _uncompiled(model: nn.Module) -> nn.Module:
    """Returns the model without wrappers of `torch.compile`, which would change the names of its parameters."""
    model = getattr(model, "_orig_mod", model)
    for module in list(model.modules()):
        module._compiled_call_impl = None
        for name, child in list(module._modules.items()):
            if child is not None and hasattr(child, "_orig_mod"):
                module._modules[name] = _uncompiled(child)
    return model
