"""What a run's folder is called after: one component of a path, whatever the recipe's file is called."""

import re

MAX_BYTES = 160  # of the 255 that file systems take; the time, an id and temporary names are added


def folder_name(name: str) -> str:
    """Returns `name` with letters, digits, `_`, `.` and `-` alone, not hidden, not an option, and not too long.

    >>> folder_name("a b/c"), folder_name(".."), folder_name("-rf"), folder_name("x" * 300) == "x" * 160
    ('a-b-c', 'recipe', 'rf', True)
    """
    readable = re.sub(r"[^\w.-]+", "-", name).strip(".-")
    return readable.encode()[:MAX_BYTES].decode(errors="ignore") or "recipe"
