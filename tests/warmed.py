"""Imported by the process that those with a limit are forked from (`limited.py`)."""

import gc

from tests.limited import warm

warm()
gc.collect()
gc.freeze()  # what all of them share need not be looked through by each, which would copy it
