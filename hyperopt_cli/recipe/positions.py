"""Where each key and value of a recipe was written: a file's line and column, or the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperopt_cli.errors import Issue, RecipeError

KeyPath = tuple[str | int, ...]


class Position(NamedTuple):
    """A place in a source; `line` and `column` start at 1, and line 0 means the source as a whole."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


COMMAND_LINE = Position("command line")


class Mark(NamedTuple):
    """Where a key stands, and where its value begins (the same place for an item of a list)."""

    key: Position
    value: Position


class Finding(NamedTuple):
    """Something wrong at `path`, before it has been located.

    Attributes:
        path: keys and list indices from the recipe's root.
        message: what was given, what is allowed, what to do.
        at_key: whether the key itself is at fault rather than its value.
        position: the place, where it isn't the one that `path` has.
        pattern: what `--allow-import` would have to be given, where that is what is missing.
    """

    path: KeyPath
    message: str
    at_key: bool = False
    position: Position | None = None
    pattern: str = ""


@dataclass(frozen=True)
class Positions:
    """The marks of one recipe. Any two are equal, so that recipes compare by what they say, not by their layout."""

    marks: Mapping[KeyPath, Mark] = field(default_factory=dict, compare=False, repr=False)

    def find(self, path: KeyPath, at_key: bool = False) -> Position | None:
        """Returns the position of `path`, or of its nearest parent that was written down."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                return mark.key if at_key and length == len(path) else mark.value
        return None

    def locate(self, path: KeyPath) -> str:
        """Returns `file:line:column` or `command line` for `path`; empty if the recipe came from neither."""
        position = self.find(path)
        return "" if position is None else str(position)

    def error(self, findings: list[Finding]) -> RecipeError:
        """Returns the error that lists `findings` by position, those of the command line last."""
        placed = [(finding.position or self.find(finding.path, finding.at_key), finding) for finding in findings]
        placed.sort(key=lambda pair: _order(pair[0]))
        issues = [
            Issue(finding.path, finding.message, str(position or ""), pattern=finding.pattern)
            for position, finding in placed
        ]
        return RecipeError(list(dict.fromkeys(issues)))

    def located(self, error: RecipeError) -> RecipeError:
        """Returns `error` with the positions filled in that its issues lack, and these in the order of the file."""
        placed = [(self.find(issue.path, issue.at_key), issue) for issue in error.issues]
        placed.sort(key=lambda pair: _order(pair[0]))
        return RecipeError(
            [issue if issue.where else issue._replace(where=str(position or "")) for position, issue in placed]
        )


def _order(position: Position | None) -> tuple[bool, int, int]:
    return (True, 0, 0) if position is None else (position.line == 0, position.line, position.column)
