"""A keeper that keeps everything."""

import copy
from typing import Any

from hyperopt_cli.modes.account import listed


class Saving:
    """Keeps every state, between the runs and in the middle of them."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def due(self) -> bool:
        return True

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(copy.deepcopy(listed(state)))

    def barrier(self) -> None:
        pass
