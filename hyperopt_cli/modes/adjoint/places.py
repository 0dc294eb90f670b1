"""Where the states lie that checkpointed reverse keeps: on the device, in the host's memory, on the disk.

Slots are filled and emptied like a stack (`binomial.py`). Those at the bottom hold the early states, which are
read rarely: they lie farthest, on the disk; above them those in the host's memory, and on top those on the device. On
the CPU the host's memory is the device's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.modes.adjoint.disk_snapshots import DiskSnapshots, NoLift
from hyperopt_cli.modes.adjoint.pinned_snapshots import PinnedSnapshots, SideStream
from hyperopt_cli.modes.adjoint.snapshots import CopiedSnapshots, HeldSnapshots, Snapshots

ALLOWED = (
    'None or "all" (every state is kept), "auto" (as many as fit), a number of at least 1, or a mapping with some of '
    "device, host and disk"
)


class Places(NamedTuple):
    """Numbers of slots, by where they lie."""

    device: int = 0
    host: int = 0
    disk: int = 0

    @classmethod
    def of(cls, slots: int | Mapping[str, int]) -> "Places":
        """Makes places from the number of slots on the device, or from a mapping.

        Raises:
            ValueError: neither, an unknown place, a number below 0, or no slot at all.
        """
        if not isinstance(slots, Mapping):
            slots = {"device": _number(slots, 1, f"got {slots!r}; allowed are {ALLOWED}")}
        for place, number in slots.items():
            if place not in cls._fields:
                raise ValueError(f"slots: got {place!r} in {dict(slots)}; allowed are {', '.join(cls._fields)}")
            _number(number, 0, f"got {number!r} for {place}; allowed is a number of at least 0")
        places = cls(**slots)
        if sum(places) == 0:
            raise ValueError(f"slots: got {dict(slots)}; w_0 needs one: give device, host or disk at least 1")
        return places

    def at_most(self, slots: int) -> "Places":
        """Returns at most `slots` of these, without those that lie farthest."""
        device = min(self.device, slots)
        host = min(self.host, slots - device)
        return Places(device, host, min(self.disk, slots - device - host))


def _number(given: Any, least: int, otherwise: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise ValueError(f"slots: {otherwise}")
    return given


class SnapshotStack(Snapshots):
    """A stack of states over several snapshots, each of which is filled before the next; a context that closes them.

    Args:
        snapshots: with how many states each may hold, the farthest first.
    """

    def __init__(self, snapshots: Sequence[tuple[int, Snapshots]]) -> None:
        self._parts = snapshots

    @classmethod
    def on(cls, places: Places, device: torch.device) -> Self:
        """Makes the stack for the states of `device`.

        Raises:
            HyperoptError: there is no place for a file.
        """
        side = SideStream(device) if device.type == "cuda" else None
        snapshots: list[tuple[int, Snapshots]] = []
        if places.disk:
            snapshots.append((places.disk, DiskSnapshots(places.disk, side or NoLift())))
        if side is not None:
            return cls(
                [*snapshots, (places.host, PinnedSnapshots(places.host, side)), (places.device, HeldSnapshots())]
            )
        num_near = places.host + places.device
        return cls([*snapshots, (num_near, CopiedSnapshots(num_near) if device.type == "cpu" else HeldSnapshots())])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts)

    def push(self, state: State) -> None:
        """Pushes the state onto the farthest part with room."""
        next(part for num_slots, part in self._parts if len(part) < num_slots).push(state)

    def top(self) -> State:
        """Returns the state on top, from the nearest part that is not empty."""
        return self._last().top()

    def ahead(self) -> None:
        """Calls `ahead` on the part that is read next, if any."""
        if len(self):
            self._last().ahead()

    def drop(self) -> None:
        """Drops the state on top, from the nearest part that is not empty."""
        self._last().drop()

    def states(self) -> Iterable[State]:
        """Yields all states, those of the farthest part first."""
        return (state for _, part in self._parts for state in part.states())

    def close(self) -> None:
        """Closes every part of the stack in turn."""
        for _, part in self._parts:
            part.close()

    def _last(self) -> Snapshots:
        return next(part for _, part in reversed(self._parts) if len(part))
