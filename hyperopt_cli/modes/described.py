"""A mode as dictionaries, text and numbers, from which another process makes it again; for a checkpoint."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hyperopt_cli.modes.base import Mode


def described(mode: Mode) -> dict[str, Any]:
    """Its name, what it was made with, and what it has decided."""
    assert is_dataclass(mode)
    arguments = {each.name: getattr(mode, each.name) for each in fields(mode) if each.init}
    return {"mode": type(mode).__name__, "arguments": arguments, "decisions": mode.decisions()}


def revived(description: Mapping[str, Any], modes: Iterable[type[Mode]]) -> Mode:
    """The inverse of `described`, for one of `modes`."""
    by_name = {mode.__name__: mode for mode in modes}
    mode = by_name[description["mode"]](**description["arguments"])
    mode.decided(description["decisions"])
    return mode
