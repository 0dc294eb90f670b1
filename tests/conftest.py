"""The command line called in this process, as a shell would call it."""

from typing import NamedTuple

import pytest
import torch

from hyperopt_cli.cli import main

# The networks of the tests are small: a second thread brings nothing, and costs much beside other processes.
torch.set_num_threads(1)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def hyperopt(monkeypatch, capfd, tmp_path):
    """`hyperopt(*arguments)` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["hyperopt", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        return Outcome(code, *capfd.readouterr())

    return call
