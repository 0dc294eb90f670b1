"""Modes as a shell user types them: `forward,reverse:slots=50,reverse:window=20`."""

from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe.wording import shown

FORM = "NAME[:KEY=VALUE]... separated by commas, such as forward,reverse:slots=50,reverse:slots.host=200:window=20"


def mode_overrides(text: str) -> dict[str, list[str]]:
    """Returns the overrides that set each mode of a list, by the mode as it was typed.

    KEY is a key of a recipe's section `mode`, dotted where it lies deeper.

    Raises:
        UsageError: a mode has no name, or is named twice.

    >>> mode_overrides("forward,reverse:slots=50")
    {'forward': ['mode=forward'], 'reverse:slots=50': ['mode=reverse', 'mode.slots=50']}
    """
    chosen: dict[str, list[str]] = {}
    for typed in map(str.strip, text.split(",")):
        name, *arguments = typed.split(":")
        if not name:
            raise UsageError(f"--modes: got {shown(text)}; give {FORM}")
        if name == "auto":
            raise UsageError("--modes: auto stands for one of the other modes; name those that you want to compare")
        if typed in chosen:
            raise UsageError(f"--modes: got {typed} twice; name each mode once")
        chosen[typed] = [f"mode={name}", *(f"mode.{argument}" for argument in arguments)]
    return chosen
