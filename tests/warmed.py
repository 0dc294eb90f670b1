"""Imported by the process that those with a limit are forked from (`limited.py`)."""

from tests.limited import warm

warm()
