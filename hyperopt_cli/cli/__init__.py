"""The command line: one thin file a command. Nothing here imports torch until a command needs it."""

from hyperopt_cli.cli.main import app, main

__all__ = ["app", "main"]
