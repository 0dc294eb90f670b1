"""States on the disk: one file that has no name, a slot after the other, written and read by a thread of its own.

The file lies in the system's temporary folder (TMPDIR says where) and vanishes with the process, however it ends. The
thread writes a state while the run goes on, and reads the next one while a step is differentiated; at most one state
waits to be written and one to be read.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.errors import HyperoptError
from hyperopt_cli.modes.adjoint.rows import RowLayout
from hyperopt_cli.modes.adjoint.snapshots import Snapshots

PAGE = 4096


class Lift(Protocol):
    """Moves states between the device and the host."""

    def down(self, state: State) -> tuple[State, Callable[[], None]]:
        """Returns the state on the host, and a function that waits until it has arrived there."""

    def up(self, state: State) -> State:
        """Returns a state of the host on the device."""

    def row(self, num_bytes: int) -> Tensor:
        """Returns a new row of bytes on the host, [num_bytes], from which `up` is quick."""


class NoLift:
    """The lift of a device that is the host: nothing is moved."""

    def down(self, state: State) -> tuple[State, Callable[[], None]]:
        """Returns the state itself, and a function that waits for nothing."""
        return state, lambda: None

    def up(self, state: State) -> State:
        """Returns the state itself, which is on the host already."""
        return state

    def row(self, num_bytes: int) -> Tensor:
        """Returns a new row of pageable memory, [num_bytes]."""
        return torch.empty(num_bytes, dtype=torch.uint8)


class DiskSnapshots(Snapshots):
    """A stack of states in a file.

    Args:
        num_slots: how many may come, for the message when there is no room.
        lift: between the device and the host.

    Raises:
        HyperoptError: the file can't be opened, written or read; at any call but `drop`.
    """

    def __init__(self, num_slots: int, lift: Lift) -> None:
        self._num_slots, self._lift = num_slots, lift
        self._records: list[RowLayout] = []
        self._writing: Future[None] | None = None
        self._reading: Future[Tensor] | None = None
        self._slot_bytes = 0
        if (named := os.environ.get("TMPDIR")) and not os.path.isdir(named):
            raise HyperoptError(f"slots: TMPDIR is {named}, which is no folder; slots on the disk would lie elsewhere")
        try:
            self._file = tempfile.TemporaryFile(buffering=0, prefix="hyperopt-")  # noqa: SIM115
        except OSError as error:
            raise self._refusal("opened", error) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hyperopt-disk")

    def __len__(self) -> int:
        return len(self._records)

    def push(self, state: State) -> None:
        """Begins to write the state, once the one before is written."""
        self._settle()
        self._reading = None
        record = RowLayout(state)
        self._slot_bytes = self._slot_bytes or -(-record.num_bytes // PAGE) * PAGE
        assert record.num_bytes <= self._slot_bytes  # every state is of one size
        begin = len(self._records) * self._slot_bytes
        self._records.append(record)
        self._writing = self._thread.submit(self._write, begin, record, *self._lift.down(state))

    def ahead(self) -> None:
        """Begins to read the state on top."""
        if self._reading is None:
            begin = (len(self._records) - 1) * self._slot_bytes
            self._reading = self._thread.submit(self._read, begin, self._records[-1])

    def top(self) -> State:
        """Waits until the state on top is written and read, and returns it on the device."""
        self._settle()
        self.ahead()
        assert self._reading is not None
        reading, self._reading = self._reading, None
        return self._lift.up(self._records[-1].views(self._result(reading, "read")))

    def drop(self) -> None:
        """Forgets the state on top, whose place in the file the next one overwrites."""
        self._reading = None
        self._records.pop()

    def states(self) -> Iterable[State]:
        """Reads all states once more, one at a time, and leaves them on the host."""
        self._settle()
        for i, record in enumerate(self._records):
            reading = self._thread.submit(self._read, i * self._slot_bytes, record)
            yield record.views(self._result(reading, "read"))

    def close(self) -> None:
        """Ends the thread and closes the file, which vanishes."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._file.close()

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            self._result(writing, "written")

    def _result(self, job: "Future[Any]", what: str) -> Any:
        try:
            return job.result()
        except OSError as error:
            raise self._refusal(what, error) from error

    def _refusal(self, what: str, error: OSError) -> HyperoptError:
        size = f"; a slot takes {self._slot_bytes:,} bytes" if self._slot_bytes else ""
        return HyperoptError(
            f"slots: the file of the {self._num_slots} disk slots in {_folder()} can't be {what} "
            f"({error.strerror or error}){size}. Set TMPDIR to a folder with more room, or give fewer disk slots"
        )

    def _write(self, begin: int, record: RowLayout, state: State, arrived: Callable[[], None]) -> None:
        arrived()
        for at, chunk in record.chunks(state):
            self._file.seek(begin + at)
            while chunk:
                chunk = chunk[self._file.write(chunk) :]

    def _read(self, begin: int, record: RowLayout) -> Tensor:
        row = self._lift.row(record.num_bytes)
        rest = row.numpy().data
        self._file.seek(begin)
        while rest:
            num = self._file.readinto(rest)
            if not num:
                raise OSError("the file is shorter than what was written")
            rest = rest[num:]
        return row


def _folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "the temporary folder"
