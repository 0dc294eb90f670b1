"""Who watches a run: the live display, the log for TensorBoard, status.json, and whoever else."""

from typing import Any


class Callback:
    """Hears what happens in a run; a subclass overrides what it wants to hear of, and nothing else happens."""

    def on_inner_step(self, outer_step: int, replica: int, phase: str, done: int, steps: int) -> None:
        """An inner step is done.

        Args:
            outer_step: the outer step that it belongs to.
            replica: the training run of that outer step, from 0.
            phase: "forward", "backward", or "digits" for plain runs that tell the hypergradient's digits.
            done: steps of the phase so far.
            steps: of the whole phase.
        """

    def on_outer_step(self, step: Any) -> None:
        """An outer step was measured, an `outer.outer_step.OuterStep`; what belongs to it is on the disk."""

    def on_trial(self, trial: Any) -> None:
        """A plain training run was taken, an `outer.outer_step.Trial`; its line is on the disk."""

    def on_message(self, text: str) -> None:
        """Something happened that is no step; `text` says what."""

    def on_end(self, result: Any) -> None:
        """The run has ended with a `run_directory.result.Result`, which is on the disk."""


class Callbacks(Callback):
    """Passes everything on to several callbacks, in their order.

    Args:
        *callbacks: all of them.
    """

    def __init__(self, *callbacks: Callback) -> None:
        self._all = callbacks

    def on_inner_step(self, outer_step: int, replica: int, phase: str, done: int, steps: int) -> None:
        """Passes an inner step on to every callback.

        Args:
            outer_step: the outer step that it belongs to.
            replica: the training run of that outer step, from 0.
            phase: "forward", "backward" or "digits".
            done: steps of the phase so far.
            steps: steps of the whole phase.
        """
        for each in self._all:
            each.on_inner_step(outer_step, replica, phase, done, steps)

    def on_outer_step(self, step: Any) -> None:
        """Passes a measured outer step on to every callback."""
        for each in self._all:
            each.on_outer_step(step)

    def on_trial(self, trial: Any) -> None:
        """Passes a trial on to every callback."""
        for each in self._all:
            each.on_trial(trial)

    def on_message(self, text: str) -> None:
        """Passes a message on to every callback."""
        for each in self._all:
            each.on_message(text)

    def on_end(self, result: Any) -> None:
        """Passes the result of the run on to every callback."""
        for each in self._all:
            each.on_end(result)
