"""A user's model as derivatives can take it: nothing compiled, materialised, with dense gradients, free of graphs.

The values are those of the model as it was written. A compiled part would be an opaque step that is differentiated only
once, a lazy parameter has no shape yet, a sparse gradient has none of the operators that a tangent needs, and a tensor
that hangs on the graph of the model's constructor (`torch.nn.utils.weight_norm`) can't be copied.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hyperopt_cli.errors import HyperoptError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.models.batch_norm import use_batch_statistics
from hyperopt_cli.problem import uncompiled

MAX_NAMES = 5


class UnfitStateError(Exception):
    """A state_dict can't be read, or is not that of the model; the message says why."""


def prepared(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    example: Callable[[], tuple[Tensor, ...]],
    state: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Returns the model in training mode, on the device, with batch statistics in place of running ones.

    Args:
        model: changed in place, or what it wraps.
        device: the device that it is moved to.
        dtype: the dtype of its floating-point parameters.
        example: what the model is called with, for one with lazy parameters.
        state: a state_dict with the values of all parameters and buffers; None: those that the model has.

    Raises:
        UnfitStateError: `state` is that of another model.
    """
    model = _uncompiled(model).to(device, dtype)
    if any(is_lazy(x) for x in [*model.parameters(), *model.buffers()]):
        with torch.no_grad(), uncompiled():
            model.eval()(*example())
    if state is not None:
        if differences := misfit(model.state_dict(), state):
            raise UnfitStateError(differences)
        model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(module, name, value.detach())
    use_batch_statistics(model.train())
    return model


def state_on_host(model: nn.Module) -> dict[str, Any]:
    """Returns the model's state_dict with its tensors on the CPU, each in storage of its own."""
    state = model.state_dict()
    return {name: x.detach().cpu().clone() if isinstance(x, Tensor) else x for name, x in state.items()}


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


def read_state_dict(path: str) -> dict[str, Any]:
    """Returns the state_dict in a file, on the CPU.

    Args:
        path: relative to the working directory, or absolute.

    Raises:
        UnfitStateError: it holds none that `torch.load(weights_only=True)` reads.
    """
    how = "give what torch.save(model.state_dict(), PATH) has written, such as model.pt of a run"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UnfitStateError(f"got {path}, which can't be read ({error.strerror or error}); {how}") from None
    except Exception as error:  # of pickle, zipfile, or torch
        if is_lacking(error):
            raise
        raise UnfitStateError(
            f"got {path}, which torch.load(weights_only=True) does not read ({type(error).__name__}); {how}"
        ) from None
    if not isinstance(state, Mapping) or not any(isinstance(x, Tensor) for x in state.values()):
        keys = f" with the keys {_listed(state)}" if isinstance(state, Mapping) else ""
        raise UnfitStateError(f"got {path}, which holds a {type(state).__name__}{keys} and no tensors by name; {how}")
    return dict(state)


def misfit(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Returns in words how names and shapes of a state_dict differ from the model's own; empty where they don't."""
    found = [
        f"{what} {_listed(names)}"
        for what, names in (("lacks", own.keys() - state.keys()), ("has besides", state.keys() - own.keys()))
        if names
    ]
    for name in sorted(own.keys() & state.keys()):
        shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (state[name], own[name])]
        if shapes[0] != shapes[1]:
            found.append(f"has {name} as {shapes[0]}, must be {shapes[1]}")
    shown = "; ".join(found[:MAX_NAMES]) + ("; ..." if len(found) > MAX_NAMES else "")
    return f"{shown}. Give the state_dict of this model, or the model that it is of" if found else ""


def _listed(names: Collection[Any]) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:MAX_NAMES]) + (f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else "")


def _uncompiled(model: nn.Module) -> nn.Module:
    """Returns the model without wrappers of `torch.compile`, which would change the names of its parameters."""
    model = getattr(model, "_orig_mod", model)
    for module in list(model.modules()):
        module._compiled_call_impl = None
        for name, child in list(module._modules.items()):
            if child is not None and hasattr(child, "_orig_mod"):
                module._modules[name] = _uncompiled(child)
    return model
