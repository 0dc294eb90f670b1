"""Time and memory of every mode, predicted from a few measured steps, and the choice between them (`plan.py`)."""
