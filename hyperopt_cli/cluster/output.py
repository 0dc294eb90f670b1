"""What the elements of a job print, as it comes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

POLL_S, ASK_S = 0.5, 5.0


def pieces(files: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Yields what the files hold now, as (index of the file, text); files that do not exist yet are left out."""
    return _Reader(files).read()


def follow(
    files: Sequence[Path],
    is_live: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
    ask_s: float = ASK_S,
) -> Iterator[tuple[int, str]]:
    """Yields what the files hold and what is added to them, as (index of the file, text), until the job has ended.

    Args:
        files: the files to read; one that does not exist yet is read once it does.
        is_live: says whether more may come; after it has said no, the files are read once more.
        sleep: waits for that many seconds between two readings.
        ask_s: how many seconds pass at least between two calls of `is_live`.
    """
    reader, asked, going_on = _Reader(files), -math.inf, True
    while going_on:
        if time.monotonic() - asked >= ask_s:
            going_on, asked = is_live(), time.monotonic()
        yield from reader.read()
        if going_on:
            sleep(POLL_S)


class _Reader:
    """Reads each file on from where it stopped; a character that is half written waits for its other half."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, self._places = files, [0] * len(files)

    def read(self) -> Iterator[tuple[int, str]]:
        for n, path in enumerate(self._files):
            if not path.is_file():
                continue
            with path.open("rb") as file:
                file.seek(self._places[n])
                content = _whole_characters(file.read())
            if content:
                self._places[n] += len(content)
                yield n, content.decode(errors="replace")


def _whole_characters(content: bytes) -> bytes:
    """Returns `content` without a last character of UTF-8 that is not complete."""
    for length in range(1, min(3, len(content)) + 1):
        byte = content[-length]
        if byte >= 0xC0:  # begins a character of 2 to 4 bytes
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return content[:-length] if needed > length else content
        if byte < 0x80:
            break
    return content
