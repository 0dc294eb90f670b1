"""The columns of Z that forward mode carries, in blocks that are treated at once.

Which columns stand together in a product can decide its last bits. With `columns_at_once` blocks follow from it and K
alone, so that processes which divide them among themselves get the bits of one process; without one each has a block.

A column that is zero stays zero until a step's lambda_t depends on it (its window of a schedule begins): until then it
is not carried at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.dynamics.derivatives import push_columns
from hyperopt_cli.dynamics.dynamics import Dynamics, State
from hyperopt_cli.modes.directions import identity
from hyperopt_cli.optimizers.base import StepHyper
from hyperopt_cli.problem import Hyper


def divided(num: int, at_once: int | None, rank: int = 0, size: int = 1) -> list[list[int]]:
    """Returns the blocks of one of `size` processes, each a list of column numbers.

    Windows of a schedule begin one after the other: neighbours go to different processes, so that all have work.

    Args:
        num: K.
        at_once: columns of a block; None: one block for each process.
        rank: which process.
        size: of how many.
    """
    if at_once is None:
        return [list(range(rank, num, size))]
    return [list(range(num))[k : k + at_once] for k in range(0, num, at_once)][rank::size]


class Columns(NamedTuple):
    """The tangents of one block.

    Attributes:
        block: its columns, by their numbers.
        active: those that are carried, in the order of Z's rows.
        z: Z_t, a state with a row for each active column, and rows of zeros where `padded`.
        padded: the number of rows is 1, 2, 4, ... or that of the block, so that few steps have to be compiled.
    """

    block: list[int]
    active: list[int]
    z: State
    padded: bool = False

    @property
    def all_active(self) -> bool:
        """Whether no column can begin any more."""
        return len(self.active) == len(self.block)

    def joined_by(self, moving: set[int], state: State) -> "Columns":
        """Returns these with the columns that begin at this step: zero so far, while lambda_t moves along them."""
        new = [k for k in self.block if k in moving and k not in self.active]
        if not new:
            return self
        num_missing = self._num_rows(len(self.active) + len(new)) - len(self.active)
        rows = tree_map(lambda x: x.new_zeros(num_missing, *x.shape), state)
        z = tree_map(lambda *parts: torch.cat(parts), self.carried, rows) if self.active else rows
        return self._replace(active=self.active + new, z=z)

    def _num_rows(self, num_active: int) -> int:
        return min(len(self.block), 1 << (num_active - 1).bit_length()) if self.padded else num_active

    def of(self, directions: StepHyper) -> StepHyper:
        """Returns the rows of lambda', `[K, *shape]`, that belong to the rows of Z."""
        num_columns = tree_leaves(directions)[0].shape[0]
        if self.active == list(range(num_columns)):
            return directions
        num_rows = tree_leaves(self.z)[0].shape[0]
        chosen: StepHyper = tree_map(lambda entry: _padded(entry[self.active], num_rows), directions)
        return chosen

    @property
    def carried(self) -> State:
        """The rows of Z that belong to active columns, without padding."""
        rows: State = tree_map(lambda x: x[: len(self.active)], self.z)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Returns the active columns and their tangents, for a checkpoint."""
        return {"active": self.active, "z": self.carried.state_dict()}

    def resumed_from(self, saved: Sequence[Mapping[str, Any]], like: State) -> "Columns":
        """Returns these with the tangents that were carried where other processes stopped, whatever their blocks.

        Args:
            saved: the state of all their blocks.
            like: a state of the run, for its device.
        """
        device = tree_leaves(like)[0].device
        rows = {
            k: tree_map(lambda x: x[row], State(**each["z"]))  # noqa: B023
            for each in saved
            for row, k in enumerate(each["active"])
            if k in self.block
        }
        if not rows:
            return self
        num_rows = self._num_rows(len(rows))
        z = tree_map(lambda *parts: _padded(torch.stack(parts).to(device), num_rows), *rows.values())
        return self._replace(active=list(rows), z=z)


class Carried(NamedTuple):
    """All columns that this process carries.

    Attributes:
        blocks: of them.
        resting: no column of any process moves yet: the run is a plain one.
    """

    blocks: list[Columns]
    resting: bool

    @classmethod
    def at_start(cls, dynamics: Dynamics, hyper: Hyper, blocks: Iterable[list[int]], padded: bool) -> "Carried":
        """Takes Z_0 = ds_0/dlambda: the columns of each block that init depends on.

        Args:
            dynamics: of the run.
            hyper: lambda.
            blocks: the columns that are treated at once, by their numbers.
            padded: whether the number of rows is rounded up, so that few steps have to be compiled.
        """
        none = tree_map(lambda x: x.new_zeros(0, *x.shape), dynamics.start)
        columns = [Columns(block, [], none, padded) for block in blocks]
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in hyper.items()}
            named = dynamics.derivable("init", dynamics.problem.initial, (leaves,))(leaves)
        if not any(w.grad_fn is not None or w.requires_grad for w in named.values()):
            return cls(columns, resting=True)
        return cls([_moved(dynamics, hyper, each) for each in columns], resting=False)

    def joined_by(self, directions: StepHyper, state: State) -> "Carried":
        """Returns these with the columns that begin at this step."""
        if not self.resting and all(block.all_active for block in self.blocks):
            return self
        begins = moving(directions)  # asked where hyper lies, not on the device: nothing waits
        blocks = [block.joined_by(begins, state) for block in self.blocks]
        return Carried(blocks, self.resting and not begins)

    def resumed_from(self, saved: Sequence[Mapping[str, Any]], like: State) -> "Carried":
        """Returns what was carried where other processes stopped, whatever their blocks."""
        blocks = [block.resumed_from(saved, like) for block in self.blocks]
        return Carried(blocks, self.resting and not any(each["active"] for each in saved))


def _moved(dynamics: Dynamics, hyper: Hyper, columns: Columns) -> Columns:
    directions = tree_map(lambda x: x[columns.block], identity(hyper))
    _, start_dot = push_columns(dynamics.derivable("init", dynamics.initial, (hyper,)), (hyper,), (directions,))
    start_dot = tree_map(lambda x, s: x.to(s), start_dot, dynamics.start)
    rows = sorted(moving(start_dot))
    if not rows:
        return columns
    moved = {"active": [columns.block[row] for row in rows], "z": tree_map(lambda x: x[rows], start_dot)._asdict()}
    return columns.resumed_from([moved], dynamics.start)


def moving(directions: Any) -> set[int]:
    """Returns the rows of a tree `[K, *shape]` that are not zero: the columns along which something moves."""
    rows = [(entry != 0).reshape(entry.shape[0], -1).any(dim=1).cpu() for entry in tree_leaves(directions)]
    return set(torch.stack(rows).any(dim=0).nonzero().flatten().tolist())


def _padded(rows: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
