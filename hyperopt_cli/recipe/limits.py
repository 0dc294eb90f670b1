"""How much a recipe may hold, and how much it may grow once aliases and defaults are written out.

Everything is far above what a recipe needs and far below what would cost memory, a long wait or Python's stack.
"""

from typing import Any

from hyperopt_cli.errors import RecipeError

MAX_BYTES = 1_000_000  # of a file, of a value on the command line, and of the recipe written out in full
MAX_DEPTH = 40  # levels, the scalar at the bottom included
MAX_NODES = 100_000  # keys, values and items, aliases expanded
MAX_KEY = 255  # characters of a key, and of the name of a callable
MAX_NUMBER = 100  # characters of a number
MAX_INTEGER = 2**63 - 1
MAX_POINTS = 1_000_000  # numbers that one schedule holds: windows, knots, or steps of per_step
MAX_ISSUES = RecipeError.MAX_TOLD


def excess(data: Any, written: str) -> str:
    """Returns in which way the plain `data`, as `written`, is more than a recipe may hold; empty if it isn't.

    What is within these bounds can be read back.
    """
    num_bytes = len(written.encode(errors="replace"))
    if num_bytes > MAX_BYTES:
        return f"grows to {num_bytes} bytes with everything written out; at most {MAX_BYTES}"
    depth, level, num_nodes = 0, [data], 0
    while level:
        depth, num_nodes = depth + 1, num_nodes + len(level)
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                num_nodes += len(value)  # its keys
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
        level = below
    if num_nodes > MAX_NODES or depth > MAX_DEPTH:
        return (
            f"grows to {num_nodes} values on {depth} levels with everything written out; "
            f"at most {MAX_NODES} on {MAX_DEPTH}"
        )
    return ""
