"""What the ranks decide together: at which inner step a checkpoint is written, that a signal came, that one has failed.

A signal reaches ranks at different moments, or one of them alone. So the flags go from rank to rank, by their maximum,
in a message of five numbers, once in so many steps that it comes about four times a second. The interval is part of the
message: all ranks count the same steps. A rank whose work is done takes part until the others' is.

A save is, on every rank: `due` is true; `barrier`, so that none has failed; the state is made, which is collective
where columns or replicas are divided; the lead writes it; all hear whether that has raised. A rank that waits for
others (`together`) does the same in its place.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from hyperopt_cli.errors import HyperoptError
from hyperopt_cli.keeper import Keeper
from hyperopt_cli.ranks.group import Ranks
from hyperopt_cli.run_directory.signals import SIGNALS, StopFlag

EVERY_S = 0.25
MOST_STEPS = 1000


class FailedElsewhere(HyperoptError):
    """Another rank has failed; the error of that rank itself is raised at the end of the step."""


class Agreement:
    """The keeper of a run that several ranks share: they all save, or stop, at the same step.

    Args:
        ranks: all ranks of the run.
        flag: the signals that this rank has received.
        keeper: writes the checkpoints of the lead; None on the other ranks.
    """

    def __init__(self, ranks: Ranks, flag: StopFlag, keeper: Keeper | None) -> None:
        self._ranks, self._flag, self._keeper = ranks, flag, keeper
        self._due = self._save_raised = False
        self._interval = self._to_go = 1
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Counts a step, and returns whether all ranks are to save now what they have."""
        if not self._due:
            self._to_go -= 1
            if self._to_go <= 0:
                self._round(busy=True)
        return self._due

    def save(self, state: dict[str, Any]) -> None:
        """Saves the state through the keeper of the lead; an error in this is raised on all ranks."""
        self._due, error = False, None
        try:
            if self._keeper is not None:
                self._keeper.save(state)
        except Exception as raised:
            error = raised
        self._save_raised = self._ranks.from_lead(error is not None)
        if self._save_raised:  # else a signal that has come to another rank alone waits for the next message
            self._ranks.raise_first(error)

    def barrier(self) -> None:
        """Waits, by a message of its own, until all ranks are here.

        Raises:
            FailedElsewhere: another rank has failed on its way.
        """
        due = self._due  # what was agreed stays so until it is saved
        self._round(busy=True)
        self._due = due

    def together(self, work: Callable[[], None], save_idle: Callable[[], None]) -> None:
        """Does this rank's part of an outer step and waits for the others; an error of one is raised on all.

        Args:
            work: this rank's part, which asks `due` after each step.
            save_idle: saves the results of a rank whose part is done while others still work.
        """
        error: Exception | None = None
        try:
            work()
            busy = True
            while busy:
                if self._due:  # by now, or since before the work was done, where it was saved already
                    self._round(busy=False)  # the barrier of those that are busy
                    save_idle()
                busy = self._round(busy=False)
                self._due = self._due and busy
        except FailedElsewhere:
            pass
        except Exception as raised:
            if self._save_raised:  # on all of them
                raise
            if self._ranks.divides("batch"):  # what is not the same on all leaves the others in the middle of a sum
                raise
            error = raised
            self._round(busy=False, failed=True)
        self._ranks.raise_first(error)

    def _round(self, busy: bool, failed: bool = False) -> bool:
        """Exchanges flags with all ranks, and returns whether any is busy.

        Raises:
            FailedElsewhere: another rank has failed, and this one has not.
        """
        come = 1 + SIGNALS.index(self._flag.signal) if self._flag.signal is not None else 0
        wants = self._keeper is not None and self._keeper.due()
        fewest = -self._steps() if busy else -math.inf  # of which the maximum is taken
        given = [come, wants, busy, failed, fewest]
        signal, due, any_busy, any_failed, steps = self._ranks.highest(given)
        if signal and self._flag.signal is None:
            self._flag.signal = SIGNALS[int(signal) - 1]
        self._due = bool(signal or due)
        self._interval = self._to_go = int(-steps) if any_busy else 1
        self._last_s = time.monotonic()
        if any_failed and not failed:
            raise FailedElsewhere("another rank has failed")
        return bool(any_busy)

    def _steps(self) -> int:
        """Returns the number of steps until the next message."""
        step_s = (time.monotonic() - self._last_s) / self._interval
        return max(1, min(MOST_STEPS, 2 * self._interval, int(EVERY_S / max(step_s, 1e-9))))
