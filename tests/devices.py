"""Runs on another device than the CPU, real or pretended: what lies where, and where the host would have to wait.

A GPU is pretended in two ways. Tensors of the device "meta" have no content, and everything can be done with them,
backward passes too: to the code under test theirs is a device that is not the CPU. Tensors of `FakeTensorMode` say that
they lie on "cuda"; backward passes, which need the threads of its driver, can't be taken of them without one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from hyperopt_cli import Problem

aten = torch.ops.aten


def moved(tree: Any, device: torch.device | str) -> Any:
    return tree_map_only(Tensor, lambda x: x.to(device), tree)


def placed(problem: Problem, device: torch.device | str) -> Problem:
    """The same run with w_0 and all batches on the device; what its schedule makes stays on the host."""
    batches = [moved(problem.batch(t), device) for t in range(problem.steps)]
    init, outer = problem.init, problem.outer_loss
    default = moved(outer.__defaults__ or (), device)
    return replace(
        problem,
        init=(lambda hyper: moved(init(hyper), device)) if callable(init) else moved(init, device),
        outer_loss=lambda params, hyper, *batch: outer(params, hyper, *(batch or default)),
        batch=batches.__getitem__,
        outer_batches=moved(problem.outer_batches, device),
    )


def devices(tree: Any) -> set[str]:
    return {x.device.type for x in tree_leaves(tree) if isinstance(x, Tensor)}


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Inside, a tensor may be said to lie on "cuda"; an operator on tensors of two devices raises."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        mode.cache_enabled = False  # what it remembers of a view is no view to forward derivatives
        yield


class MixedDevicesError(Exception):
    """An operator got tensors of two devices."""


class UnawaitedError(Exception):
    """A copy to the host was begun and left alone: whoever reads it does not wait for it to arrive."""


class Device(TorchDispatchMode):
    """Inside, "meta" is a device that computes by itself; what is copied from there to the host is zero.

    Attributes:
        waits: at which operators the host would wait for it: copies that are not begun and left alone, indices on the
            host. Whoever reads a number of it raises, as torch does.

    Raises:
        MixedDevicesError: an operator got tensors of both.
        UnawaitedError: a copy to the host was left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is aten._to_copy.default and given:
            return self._copied(func, args, kwargs)
        if func is aten.copy_.default and len(devices(given)) > 1:
            return self._written(*args, **kwargs)
        on_host, elsewhere = ([x for x in given if (x.device.type == "cpu") is here] for here in (True, False))
        if elsewhere and func._schema.name.startswith("aten::index"):
            self.waits += [f"{func} by an index on the host" for x in on_host if not x.is_floating_point()]
        elif elsewhere and any(x.ndim for x in on_host):
            raise MixedDevicesError(f"{func} of {[(list(x.shape), x.device.type) for x in given]}")
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        source, target = args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type
        non_blocking = kwargs.get("non_blocking", False)
        if source != target == "cpu" and non_blocking:
            raise UnawaitedError(f"{func} from {source}")
        if source != target and not non_blocking:
            self.waits.append(f"{func} from {source} to {target}")
        if (source, target) != ("meta", "cpu"):
            return func(*args, **kwargs)
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)

    def _written(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if target.device.type == "cpu" and non_blocking:
            raise UnawaitedError(f"copy_ from {source.device.type}")
        if not non_blocking:
            self.waits.append(f"copy_ from {source.device.type} to {target.device.type}")
        return target
