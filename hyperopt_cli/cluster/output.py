"""What the elements of a job print, as it comes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

POLL_S, ASK_S = 0.5, 5.0


def pieces(files: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """What stands in the files now, as (number of the file, text); what is still to be made is left out."""
    return _Reader(files).read()


def follow(
    files: Sequence[Path],
    is_live: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
    ask_s: float = ASK_S,
) -> Iterator[tuple[int, str]]:
    """The same, and what is added, until `is_live`, asked every `ask_s` seconds, says that nothing more will come."""
    reader, asked, going_on = _Reader(files), -math.inf, True
    while going_on:
        if time.monotonic() - asked >= ask_s:
            going_on, asked = is_live(), time.monotonic()
        yield from reader.read()
        if going_on:
            sleep(POLL_S)


class _Reader:
    """Reads on where it stopped; a character that is half written waits for its other half."""

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
    """`content` without a last character of UTF-8 that is not complete."""
    for length in range(1, min(3, len(content)) + 1):
        byte = content[-length]
        if byte >= 0xC0:  # begins a character of 2 to 4 bytes
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return content[:-length] if needed > length else content
        if byte < 0x80:
            break
    return content
