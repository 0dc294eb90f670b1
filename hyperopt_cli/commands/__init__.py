"""One file a command from start to end: what is run, and what is written when."""
