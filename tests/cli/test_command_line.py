"""What every command has in common: its help, and how it takes its options."""

import re

import pytest
import typer

from hyperopt_cli.cli.main import app

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_says_in_words_what_is_to_be_given(hyperopt, name):
    code, out, _ = hyperopt(*name.split(), "--help")
    assert code == 0
    assert not re.search(r"<\w[\w\[\]| ]*>", out), "a type in brackets is for programmers"
    assert not re.search(r"\b(TEXT|INTEGER|FLOAT|BOOLEAN|bool|str)\b", out)
    assert not set("{}") & set(next(line for line in out.splitlines() if "Usage:" in line))


def test_every_option_with_a_value_says_which():
    options = [
        option
        for command in COMMANDS.values()
        for option in command.params
        if option.param_type_name == "option" and not option.is_flag
    ]
    assert len(options) > 40
    assert not [option.opts[0] for option in options if not option.metavar]
