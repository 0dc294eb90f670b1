"""A file of JSON lines that a later call continues: one line a row, and one before it, so that a death is noticed."""

import hashlib
import json
from pathlib import Path

import hyperopt_cli

HERE = Path(__file__).parent
BEGUN_TWICE = 2


def digest():
    """Of the package and of these tests: figures of other code are no part of the same table."""
    sums = hashlib.sha256()
    for root in (Path(hyperopt_cli.__file__).parent, HERE):
        for path in sorted(root.rglob("*.py")):
            sums.update(path.read_bytes())
    return sums.hexdigest()[:8]


class Lines:
    """What is done, by row, and how often a row was begun and not ended."""

    def __init__(self, path):
        self.path = path
        self.done, self.begun = {}, {}
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    continue  # torn by a kill
                if "begun" in line:
                    self.begun[line["begun"]] = self.begun.get(line["begun"], 0) + 1
                else:
                    self.done[line["row"]] = line
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self._file.write("\n")  # after a torn line

    def died(self, row):
        """Whether the process ended in it twice."""
        return self.begun.get(row, 0) >= BEGUN_TWICE

    def begin(self, row):
        self._write({"begun": row})

    def end(self, row, line):
        self.done[row] = {"row": row, **line}
        self._write(self.done[row])

    def _write(self, line):
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
