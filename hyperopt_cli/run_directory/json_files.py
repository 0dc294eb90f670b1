"""Strict JSON, written so that a reader sees the old file or the new one, never half of one.

JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity", as Protocol Buffers
do, and `revive` turns these back into floats.
"""

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from hyperopt_cli.errors import UsageError

T = TypeVar("T")
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any) -> Any:
    """Returns `value` as plain data: tensors become nested lists, NaN and infinities become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # tensors and arrays, recognised without importing torch
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def revive(value: Any) -> Any:
    """Inverts `plain` for numbers: the three strings become floats again, at any depth."""
    if isinstance(value, dict):
        return {key: revive(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [revive(entry) for entry in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def to_text(value: Any, *, indent: int | None = None) -> str:
    """Returns one JSON document that any parser reads; floats keep every digit.

    Raises:
        TypeError: `value` holds something that JSON can't express.
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


@contextmanager
def replacing(path: Path, mode: str, **how: Any) -> Iterator[IO[Any]]:
    """A context with a file under a temporary name beside `path`, which is renamed to it at the end.

    Args:
        path: the file that is replaced, or made.
        mode: how the new one is opened, `x` for text and `xb` for bytes.
        **how: further arguments of `open`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open(mode, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` under a temporary name beside `path`, then renames it."""
    with replacing(path, "x", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as an indented JSON document, of which no reader sees a half."""
    write_text(path, to_text(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in `path`, whose NaN and infinities are still strings (see `revive`).

    Raises:
        UsageError: there is no such file, or it doesn't hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; a run directory holds it: give the directory of a run") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); restore it from a copy, or give another run") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, not an object; give the directory of a run")
    return content


def whole_lines(path: Path) -> list[str]:
    """Returns the lines of `path` without a last one that is still being written; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def read_lines(path: Path, made: Callable[[dict[str, Any]], T]) -> list[T]:
    """Returns what `made` makes of each line, NaN and infinities revived; the lines are those of `whole_lines`.

    Raises:
        UsageError: a line is damaged; with its number.
    """
    results = []
    for n, line in enumerate(whole_lines(path), start=1):
        try:
            results.append(made(revive(json.loads(line))))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UsageError(f"{path}:{n} is damaged ({error}); restore the file, or delete that line") from None
    return results
