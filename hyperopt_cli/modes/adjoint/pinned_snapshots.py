"""States of a CUDA device in the host's memory: pinned, so that a stream of its own copies them beside the computation.

    down    the side stream waits for the state to be computed and copies it out
    up      the side stream copies it into new memory; the stream that computes waits for that, and the host never

Both directions share one stream: a slot is written over only after what it held has been read.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.modes.adjoint.rows import RowLayout, Rows
from hyperopt_cli.modes.adjoint.snapshots import Snapshots


class SideStream:
    """Copies between a CUDA device and pinned memory, beside what the current stream computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy_down(self, state: State, into: State) -> torch.cuda.Event:
        """Begins to copy `state` into pinned tensors; the event has happened once it has arrived."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for source, target in zip(tree_leaves(state), tree_leaves(into), strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(self._stream)  # its memory isn't given to another tensor before it has been read
            arrived: torch.cuda.Event = self._stream.record_event()
            return arrived

    def copy_up(self, state: State) -> tuple[State, torch.cuda.Event]:
        """Begins to copy pinned tensors into new ones on the device; the event has happened once they have arrived."""
        current = torch.cuda.current_stream(self._device)
        fresh: State = tree_map(lambda x: torch.empty_like(x, device=self._device), state)
        self._stream.wait_stream(current)  # what was last in that memory has been used
        with torch.cuda.stream(self._stream):
            for source, target in zip(tree_leaves(state), tree_leaves(fresh), strict=True):
                target.copy_(source, non_blocking=True)
                target.record_stream(self._stream)
            return fresh, self._stream.record_event()

    def await_event(self, event: torch.cuda.Event) -> None:
        """Makes the current stream wait for `event` before what it computes from here on."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def synchronize(self) -> None:
        """Waits until everything that was begun is done."""
        self._stream.synchronize()

    def down(self, state: State) -> tuple[State, Callable[[], None]]:
        """Returns the state in pinned memory, and a function that waits until it has arrived there."""
        record = RowLayout(state)
        into = record.views(self.row(record.num_bytes))
        return into, self.copy_down(state, into).synchronize

    def up(self, state: State) -> State:
        """Returns a pinned state on the device, for which the current stream waits."""
        fresh, arrived = self.copy_up(state)
        self.await_event(arrived)
        return fresh

    def row(self, num_bytes: int) -> Tensor:
        """Returns a pinned row, [num_bytes], out of torch's own cache of pinned memory."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


class PinnedSnapshots(Snapshots):
    """A stack of states in pinned memory, which is taken when first needed and then used again.

    Args:
        num_slots: how many states may lie here at once.
        side: copies them.
    """

    def __init__(self, num_slots: int, side: SideStream) -> None:
        self._rows, self._side = Rows(num_slots, pinned=True), side
        self._states: list[State] = []
        self._fetched: tuple[State, torch.cuda.Event] | None = None

    def __len__(self) -> int:
        return len(self._states)

    def push(self, state: State) -> None:
        """Begins to copy the state into pinned memory."""
        self._fetched = None
        record = RowLayout(state)
        into = record.views(self._rows.row(len(self._states), record.num_bytes))
        self._side.copy_down(state, into)
        self._states.append(into)

    def ahead(self) -> None:
        """Begins to copy the state on top back."""
        if self._fetched is None:
            self._fetched = self._side.copy_up(self._states[-1])

    def top(self) -> State:
        """Returns the state on top; the current stream waits for it before anything is computed with it."""
        self.ahead()
        assert self._fetched is not None
        (state, arrived), self._fetched = self._fetched, None
        self._side.await_event(arrived)
        return state

    def drop(self) -> None:
        """Forgets the state on top, whose slot is free then."""
        self._fetched = None
        self._states.pop()

    def states(self) -> Iterable[State]:
        """Returns all states in pinned memory, after everything has arrived there."""
        self._side.synchronize()
        return self._states
