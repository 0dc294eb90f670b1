"""The columns of forward mode over the processes that take a run together: each carries blocks of its own.

While they are carried nothing is said. A checkpoint has the columns of all processes, and so has the result; of what
each has recorded, the products with the Hessian are added up, and of the norms of its tangents the largest is taken.

Where this process carries all columns, every method gives back what it got.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.columns import divided
from hyperopt_cli.problem import Hyper
from hyperopt_cli.ranks.group import ALONE, Ranks


@dataclass(frozen=True)
class SharedColumns:
    """The columns of a run, in blocks that are treated at once.

    Attributes:
        num: K.
        at_once: columns of a block; None: one block for each process.
        ranks: the processes that divide them.

    Raises:
        UsageError: there are fewer blocks than processes.
    """

    num: int
    at_once: int | None
    ranks: Ranks

    def __post_init__(self) -> None:
        blocks, size = len(divided(self.num, self.at_once or 1)), self.ranks.size
        if size > 1 and blocks < size:
            smaller = "" if blocks == self.num else f"columns_at_once of at most {max(1, self.num // size)}, "
            raise UsageError(
                f"shard: columns: got {size} ranks for {self.num} columns in {blocks} blocks; use at most {blocks} "
                f"ranks, {smaller}or shard: batch"
            )

    @classmethod
    def of(cls, hyper: Hyper, at_once: int | None, ranks: Ranks) -> "SharedColumns":
        """Returns the columns of `hyper`, of which this process carries all unless `ranks` divide columns."""
        num = sum(value.numel() for value in hyper.values())
        return cls(num, at_once, ranks if ranks.divides("columns") else ALONE)

    @property
    def blocks(self) -> list[list[int]]:
        """The columns that this process carries, by their numbers."""
        return divided(self.num, self.at_once, self.ranks.rank, self.ranks.size)

    @property
    def most_at_once(self) -> int:
        """The columns of the largest block of any process: the same number on all of them."""
        return len(divided(self.num, self.at_once, 0, self.ranks.size)[0])

    def total(self, parts: Tensor) -> Tensor:
        """Returns the sum over all processes, [K]; each element is zero on all but one of them: nothing is rounded."""
        total: Tensor = self.ranks.summed(parts)
        return total

    def at_lead(self, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the states of all blocks to the process that writes them, an empty list to the others."""
        if self.ranks.size == 1:
            return states
        parts = self.ranks.at_lead(tree_map_only(Tensor, lambda x: x.cpu(), states))
        return [block for part in parts for block in part]

    def gather(self, account: Account) -> int:
        """Takes the largest norms of all processes into the account, and returns how many products all have taken."""
        growth, num_hvps = account.growth, account.counts.num_hvps
        if self.ranks.size == 1:
            return num_hvps
        num_hvps = int(self.ranks.summed(torch.tensor(num_hvps)))
        growth.load_norms(torch.tensor(self.ranks.highest(growth.norms.tolist()), dtype=growth.norms.dtype))
        return num_hvps

    def continued(self, num_hvps: int) -> int:
        """Returns the number that this process goes on from: the first one takes over the products of all."""
        return num_hvps if self.ranks.is_lead else 0
