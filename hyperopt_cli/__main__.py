"""The entry of the command line: of the program `hyperopt`, and of `python -m hyperopt_cli`."""

import sys

from hyperopt_cli.errors import MissingPackageError, needing


def main() -> None:
    """Runs the command line, or says which package it lacks: the library takes no other than torch and numpy."""
    try:
        with needing("the command line"):
            from hyperopt_cli.cli import main as run
    except MissingPackageError as error:
        print(f"hyperopt: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    run()


if __name__ == "__main__":
    main()
