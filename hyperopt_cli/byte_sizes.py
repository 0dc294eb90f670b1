"""Sizes in bytes as people write them: `2GiB`."""

import re

_BINARY = {f"{prefix}ib": 2 ** (10 * (i + 1)) for i, prefix in enumerate("kmgt")}
UNITS = {"": 1, "b": 1} | {f"{prefix}b": 10 ** (3 * (i + 1)) for i, prefix in enumerate("kmgt")} | _BINARY


def parsed_bytes(text: str) -> int:
    """Returns the bytes that a text such as `8GiB`, `512 MB` or `1000` stands for.

    Raises:
        ValueError: the text is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if size < 1:
        raise ValueError(f"got {text!r}; give a number of bytes with a unit, such as 8GiB, 512MiB or 16GB")
    return size


def bytes_text(num_bytes: float) -> str:
    """Writes bytes with three digits and a binary unit: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"
