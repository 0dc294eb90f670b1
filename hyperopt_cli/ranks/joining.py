"""The group of the processes of a run. Messages between hosts go through gloo, between GPUs through nccl."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from hyperopt_cli.errors import RankLostError
from hyperopt_cli.ranks.group import ALONE, Ranks, Shard, brief
from hyperopt_cli.ranks.place import Place

LONGEST_WAIT = timedelta(minutes=30)


@contextmanager
def joined(found: Place | None, shard: Shard) -> Iterator[Ranks]:
    """A context in which this process is in the group of all ranks, which it yields.

    Raises:
        RankLostError: the other processes do not come.
    """
    if found is None:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{found.address}:{found.port}",
            rank=found.rank,
            world_size=found.size,
            timeout=LONGEST_WAIT,
        )
    except RuntimeError as error:
        reason = f"rank {found.rank} of {found.size} at {found.address}:{found.port}: {brief(error)}"
        raise RankLostError(reason) from error
    ranks = Ranks(found.rank, found.size, shard)
    yield ranks
    # The lead leaves first: it may still measure and write, and launchers end what is left some time after one is gone.
    with suppress(RankLostError):  # an error has ended it; to leave in order would be to wait for it
        ranks.from_lead(None)
        dist.destroy_process_group()
