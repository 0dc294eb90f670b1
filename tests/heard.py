"""A callback that remembers."""

from typing import Any

from hyperopt_cli.callback import Callback


class Heard(Callback):
    """Everything that it was told, in its order.

    Attributes:
        inner: inner steps.
        messages: in words.
    """

    def __init__(self) -> None:
        self.inner: list[tuple[int, int, str, int, int]] = []
        self.messages: list[str] = []

    def on_inner_step(self, *step: Any) -> None:
        self.inner.append(step)

    def on_message(self, text: str) -> None:
        self.messages.append(text)
