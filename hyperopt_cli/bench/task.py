"""A hypergradient that several processes share: made in each of them from its description, whole or in parts."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hyperopt_cli.bench.networks import Ready, Sizes, networks, ready
from hyperopt_cli.bench.problems import Workload
from hyperopt_cli.bench.tangents import workload
from hyperopt_cli.errors import UsageError
from hyperopt_cli.problem import Batch, Chunked
from hyperopt_cli.ranks.group import Ranks, Shard


class Facts(NamedTuple):
    """What is known of a task once its network is made.

    Attributes:
        title: the network's title.
        batch: examples of a batch, B.
        parameters: parameters of the network, P.
        number_bytes: bytes of one parameter.
    """

    title: str
    batch: int
    parameters: int
    number_bytes: int


@dataclass(frozen=True)
class Task:
    """The description of a hypergradient, from which every process makes it.

    Attributes:
        network: its name in `networks`.
        sizes: the sizes of all these networks.
        device: "cpu" or "cuda".
        steps: the horizon T.
        columns: tangent columns, K.
        batch: inputs in a batch; None for the network's own number.
    """

    network: str
    sizes: Sizes
    device: str
    steps: int
    columns: int
    batch: int | None

    def device_of(self, ranks: Ranks) -> torch.device:
        """Returns the device of a rank: the CPU, or a GPU of its own."""
        return torch.device("cpu") if self.device == "cpu" else torch.device(self.device, ranks.rank)

    def run(self, ranks: Ranks, columns: int, steps: int) -> Workload:
        """Returns the whole run as one process takes it, with these numbers of columns and steps."""
        return workload(self.network_of(ranks), columns, steps)

    def divided(self, ranks: Ranks) -> Workload:
        """Returns the run as this rank takes it where all ranks divide it."""
        run = self.run(ranks, self.columns, self.steps)
        if not ranks.divides("batch"):
            return run
        size = len(run.problem.batch(0)[0])
        start, stop = (size * k // ranks.size for k in (ranks.rank, ranks.rank + 1))
        return self.on_part(run, slice(start, stop), ranks)

    def on_part(self, run: Workload, part: slice, ranks: Ranks) -> Workload:
        """Returns the run on these examples of every batch (also of the validation batch), weighted by their share.

        Args:
            run: the whole run of this task.
            part: the examples of a batch that this rank takes.
            ranks: the processes that take the other examples.
        """
        problem, validation = run.problem, self.network_of(ranks).batches.at(-1)

        def of(batch: Batch) -> tuple[Batch, float]:
            inputs, targets = batch
            return (inputs[part], targets[part]), len(targets[part]) / len(targets)

        chunked = replace(
            problem,
            batch=lambda t: Chunked([of(problem.batch(t))], ranks),
            outer_loss=lambda params, hyper, batch: problem.inner_loss(params, {}, batch),
            outer_batches=Chunked([of(validation)], ranks),
        )
        return run._replace(problem=chunked)

    def network_of(self, ranks: Ranks) -> Ready:
        """Returns the network, on the rank's device."""
        return _made(self.network, self.sizes, self.batch, self.device_of(ranks))


@lru_cache(maxsize=1)
def _made(name: str, sizes: Sizes, batch: int | None, device: torch.device) -> Ready:
    return ready(networks(sizes, device)[name], 1, batch, sizes, device)


def facts_of(ranks: Ranks, task: Task, shard: Shard) -> Facts:
    """Returns what is known of the task's network.

    Raises:
        UsageError: batches are to be divided, and batch normalisation ties their examples together.
    """
    network = task.network_of(ranks)
    tying = sorted({type(each).__name__ for each in network.model.modules() if isinstance(each, _BatchNorm)})
    if shard == "batch" and tying:
        raise UsageError(
            f"models: {task.network} has {', '.join(tying)}, for which the gradient of a batch is not the mean of "
            "those of its parts; leave it out, or give --shard columns"
        )
    params = list(network.model.parameters())
    size = network.batches.inputs.shape[1]
    return Facts(network.title, size, sum(w.numel() for w in params), params[0].element_size())
