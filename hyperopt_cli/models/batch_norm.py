"""Batch normalisation in a run that is differentiated: batch statistics in training, running ones for the test.

A training step has to be a pure function of parameters and batch, to be replayed in any order and number; running
statistics would move with each evaluation, and nothing in the training loss depends on them. So a model trains without
them, and they are estimated once, at the parameters whose test figure is wanted.

    use_batch_statistics(model)                                         # before the run, in place
    tested = estimate_running_statistics(model, w_T, training_batches)  # after it, a copy
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class WithInputs(Protocol):
    """A batch, of which only the inputs matter here."""

    @property
    def inputs(self) -> Tensor:
        """What the model is called with, [B, ...]."""


def use_batch_statistics(model: nn.Module) -> None:
    """Makes each batch normalisation use the statistics of its batch, in training and evaluation mode alike.

    Its running statistics are taken out of the model; torch then falls back on the batch's. `track_running_stats` is
    left as it is: it tells `estimate_running_statistics` which modules had them.

    Args:
        model: changed in place; models without batch normalisation stay as they are.
    """
    for module in _batch_norms(model):
        for name in BUFFERS:
            setattr(module, name, None)


@torch.no_grad()
def estimate_running_statistics(
    model: nn.Module, params: Mapping[str, Tensor], batches: Iterable[WithInputs]
) -> nn.Module:
    """Returns a copy of the model for evaluation, with running statistics that these batches give at `params`.

    Each statistic is the plain average over the batches: of their means, and of their unbiased variances. Dropout and
    the like are off. Batches should be as large as those trained on, for each layer sees activations normalised by its
    batch.

    Args:
        model: the model, which stays untouched.
        params: parameters by name; those left out keep the model's values.
        batches: of the training split, not augmented; read only if the model has running statistics to estimate.

    Returns:
        A module in evaluation mode that holds `params`.

    Raises:
        ValueError: the model has no parameter of a name, or there are no batches.
    """
    tested = copy.deepcopy(model).eval()
    own = dict(tested.named_parameters())
    if unknown := sorted(params.keys() - own.keys()):
        raise ValueError(f"the model has no parameters {unknown}: its own are {sorted(own)}")
    for name, value in params.items():
        own[name].copy_(value)
    tracking = [module for module in _batch_norms(tested) if module.track_running_stats]
    if not tracking:
        return tested

    reference = next(iter([*tested.parameters(), *tested.buffers()]), torch.empty(0))
    momenta = [module.momentum for module in tracking]
    for module in tracking:
        size = module.num_features
        module.running_mean = reference.new_zeros(size)
        module.running_var = reference.new_ones(size)
        module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=reference.device)
        module.momentum = None  # torch's word for a cumulative average
        module.train()
    num_batches = 0
    for batch in batches:
        tested(batch.inputs)
        num_batches += 1
    if not num_batches:
        raise ValueError("running statistics can't be estimated from no batches: pass at least one training batch")
    for module, momentum in zip(tracking, momenta, strict=True):
        module.momentum = momentum
        module.eval()
    return tested


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
