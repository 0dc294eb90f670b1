"""Who saves what a computation goes on from, so that another process can resume it.

A computation asks `due` after every step, and gives `save` its state where it is. What an outer layer adds to the state
of an inner one (the outer loop to that of a training run) is a wrapper, `Within`; what several processes have to agree
on is another (`commands/agreement.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol


class Keeper(Protocol):
    """Saves the state of a computation."""

    def due(self) -> bool:
        """Returns whether the state is to be saved now; it is asked after every inner step."""

    def save(self, state: dict[str, Any]) -> None:
        """Saves it; may raise, to end the run.

        Args:
            state: dictionaries, lists, tensors, numbers and text; an iterator stands for a list whose items are made
                one at a time. `state["progress"]` counts inner steps, forward and backward; the outer loop adds
                `state["n"]`, its step.
        """

    def barrier(self) -> None:
        """Waits until all processes that share the run are here; raises where one has failed on its way."""


class Within(NamedTuple):
    """Keeps the state of a part of a computation: each state is saved together with what is around it.

    Attributes:
        keeper: of the whole.
        around: the state of the part -> that of the whole.
    """

    keeper: Keeper
    around: Callable[[dict[str, Any]], dict[str, Any]]

    def due(self) -> bool:
        """Asks the outer keeper whether the state is to be saved now."""
        return self.keeper.due()

    def save(self, state: dict[str, Any]) -> None:
        """Saves the state that `around` makes of the part's state."""
        self.keeper.save(self.around(state))

    def barrier(self) -> None:
        """Waits at the outer keeper until all processes are here."""
        self.keeper.barrier()
