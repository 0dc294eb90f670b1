"""Signals that ask a run to end: they set a flag, which is read after each step and wherever a run may stop.

TERM, USR1 and USR2 are what schedulers send before they kill; INT is Ctrl-C. A second INT ends the process at once.
"""

import signal
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

from hyperopt_cli.errors import Stopped
from hyperopt_cli.stopping import stopped_by

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")


class StopFlag:
    """A context in which these signals set a flag; only for the main thread.

    Attributes:
        signal: the name of the first that came, such as SIGTERM; None as long as none has.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "StopFlag":
        for name in SIGNALS:
            number = getattr(signal, name, None)  # Windows has no USR1
            if number is not None:
                self._before[number] = signal.signal(number, self._come)
        self._stack.enter_context(stopped_by(self.check))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Ends the run if a signal has come.

        Raises:
            Stopped: a signal has come.
        """
        if self.signal is not None:
            raise Stopped(self.signal)

    def _come(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is not None
        self.signal = self.signal or signal.Signals(number).name
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
