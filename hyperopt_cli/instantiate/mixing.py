"""Is the gradient of a batch the mean of those of its parts? Tried on step 0, where ranks divide batches.

It is not where the loss ties examples together (batch normalisation) or draws for the whole batch (dropout). With a
chunk size the loss is defined on chunks, whoever takes them, and there is nothing to ask.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from hyperopt_cli.data.seeds import derive
from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.errors import Issue
from hyperopt_cli.instantiate.experiment import Experiment
from hyperopt_cli.memory import is_lacking

AGREES = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative
TYING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def mixes_examples(experiment: Experiment) -> Issue | None:
    """Returns what is wrong with dividing batches; None if nothing is, or they are not divided."""
    ranks, data = experiment.ranks, experiment.data
    if data is None or not ranks.divides("batch"):
        return None
    size = data.steps.batch_size
    if data.steps.chunk_size is not None:
        num = -(-size // data.steps.chunk_size)
        if num >= ranks.size:
            return None
        most = size // ranks.size
        return Issue(
            ("dataset", "chunk_size"), f"{num} chunks of a batch for {ranks.size} ranks; allowed is up to {most}"
        )
    if size < ranks.size:
        return Issue(("dataset", "batch_size"), f"a batch of {size} for {ranks.size} ranks; each needs an example")
    found = _difference(experiment)
    if found is None:
        return None
    difference, dtype = found
    if difference <= AGREES[dtype]:
        return None
    modules = experiment.make_model(derive(experiment.seed, "init")).modules()
    tying = (module for module in modules if isinstance(module, TYING) and getattr(module, "p", 1.0) > 0)
    culprits = ", ".join(sorted({type(module).__name__ for module in tying}))
    reason = f", for which the model's {culprits} may be the reason" if culprits else ""
    return Issue(
        ("shard",),
        f"batch: the gradient of a batch is not the mean of those of its parts (they differ by {difference:.1g} of it)"
        f"{reason}; give dataset.chunk_size, up to {size // ranks.size}, and the loss is defined on "
        "chunks, each with its own statistics and draws, for any number of ranks; or use shard: columns or replicas",
    )


def _difference(experiment: Experiment) -> tuple[float, torch.dtype] | None:
    """Returns how far the gradient at w_0, summed over parts, is from the whole batch's (relative), and its dtype.

    It is None where the whole batch does not fit into the memory of a rank, which may be why it is divided.
    """
    assert experiment.data is not None
    hyper = experiment.space.natural(experiment.space.initial())
    dynamics = Dynamics.of(replace(experiment.problem(experiment.seed), precision=None), hyper)
    at, params = dynamics.hyper_at(hyper, 0), dynamics.layout.unpack(dynamics.start.params)

    def flat(loss: Loss) -> Tensor:
        return torch.cat([g.flatten() for g in gradient(loss, params, at)[1].values()])

    at_once = None
    try:
        at_once = flat(dynamics.loss_on(experiment.data.steps.batches(experiment.seed)(0)))
    except Exception as error:
        if not is_lacking(error):
            raise
    if experiment.ranks.highest([at_once is None])[0] or at_once is None:
        return None
    in_parts = flat(dynamics.loss_at(0))
    norms = (torch.linalg.vector_norm(x) for x in (in_parts - at_once, at_once))
    return float(next(norms) / next(norms).clamp_min(1e-30)), at_once.dtype
