"""`python -m hyperopt_cli`: the command line by the interpreter that has it."""

from hyperopt_cli.cli import main

if __name__ == "__main__":
    main()
