"""A snapshots: a stack of states, wherever they lie; and those of the memory that they are computed in."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.modes.adjoint.rows import RowLayout, Rows


class Snapshots(ABC):
    """A stack of states, which come back with the same bits and strides, on the device that they came from."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns how many states lie here."""

    @abstractmethod
    def push(self, state: State) -> None:
        """Keeps `state`, which nobody may change meanwhile, on top."""

    @abstractmethod
    def top(self) -> State:
        """Returns the state on top, which stays."""

    @abstractmethod
    def drop(self) -> None:
        """Forgets the state on top."""

    @abstractmethod
    def states(self) -> Iterable[State]:
        """Returns all states, the lowest first; they stay."""

    def ahead(self) -> None:  # noqa: B027
        """Announces that the next call will be `top`: a far state may be fetched while something else is computed."""

    def close(self) -> None:  # noqa: B027
        """Gives back resources other than memory."""


class HeldSnapshots(Snapshots):
    """States held where they are: not a number is copied."""

    def __init__(self) -> None:
        self._states: list[State] = []

    def __len__(self) -> int:
        return len(self._states)

    def push(self, state: State) -> None:
        """Keeps a reference to the state."""
        self._states.append(state)

    def top(self) -> State:
        """Returns the state itself, not a copy."""
        return self._states[-1]

    def drop(self) -> None:
        """Forgets the state on top, whose memory is free once nobody else holds it."""
        self._states.pop()

    def states(self) -> Iterable[State]:
        """Returns the states themselves, not copies."""
        return self._states


class CopiedSnapshots(Snapshots):
    """States copied into standing memory of the host: many of them take no more of it than their numbers do.

    On the CPU, states that are merely held leave holes between them which their successors do not fit into, and take up
    to twice their numbers.

    Args:
        num_slots: how many states may lie here at once.
    """

    def __init__(self, num_slots: int) -> None:
        self._rows = Rows(num_slots)
        self._states: list[State] = []

    def __len__(self) -> int:
        return len(self._states)

    def push(self, state: State) -> None:
        """Copies the state over what lay in its place before."""
        record = RowLayout(state)
        into = record.views(self._rows.row(len(self._states), record.num_bytes))
        tree_map(torch.Tensor.copy_, into, state)
        self._states.append(into)

    def top(self) -> State:
        """Returns the state on top, not a copy: it holds until the next `push` after it is dropped."""
        return self._states[-1]

    def drop(self) -> None:
        """Forgets the state on top, whose place the next `push` overwrites."""
        self._states.pop()

    def states(self) -> Iterable[State]:
        """Returns the states in the standing memory, not copies."""
        return self._states
