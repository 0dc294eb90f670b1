"""MD5 sums of the files of public data sets, against damage on disk or in transit (not against malice)."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from hyperopt_cli.errors import DatasetError, Remedy

FETCH = Remedy("to fetch what is missing", ("dataset.download=true",))


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Refuses a folder in which one of the files is missing.

    Raises:
        DatasetError: a file is missing; it names the folder, the files, and the command that fetches them.
    """
    expected = list(names)
    missing = [name for name in expected if not (folder / name).is_file()]
    if missing:
        raise DatasetError(
            f"{folder} lacks {', '.join(missing)} (expected there: {', '.join(expected)}): "
            "give another dataset.root, or fetch them with dataset.download=true"
        ).remedied(FETCH)


def require_md5(path: Path, expected: str) -> None:
    """Refuses a file whose MD5 sum is not the expected one.

    Raises:
        DatasetError: the sums differ; it names the file and both sums, and says what to do.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise DatasetError(
            f"{path} is damaged: its MD5 sum is {found}, it should be {expected}. Delete it and fetch it again with "
            "dataset.download=true"
        ).remedied(FETCH)
