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


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["run", "digits_lr", "--mode", "forward", "steps=5", "--mode", "reverse"], "--mode: got forward and reverse"),
        (["run", "digits_lr", "--out=a", "--out=a"], "--out: got a and a"),
        (["plan", "digits_lr", "--memory", "1GiB", "--memory=2GiB"], "--memory: got 1GiB and 2GiB"),
        (["cancel", "12", "--wait", "1", "--wait", "2"], "--wait: got 1 and 2"),
    ],
)
def test_an_option_of_one_value_is_refused_when_it_is_given_twice(hyperopt, arguments, given):
    code, out, err = hyperopt(*arguments)
    assert (code, out) == (2, "")
    assert f"{given}; it takes one value: leave out all but one" in err


def test_what_may_be_given_several_times_may(hyperopt):
    twice = ["--allow-import", "a.*", "--allow-import", "b.*"]
    assert hyperopt("validate", "quadratic", *twice, "steps=20", "outer.steps=3").code == 0
    assert hyperopt("runs", "--json", "--json").code == 0  # a flag says nothing else the second time


def test_an_option_that_lacks_its_value_is_told_as_ever(hyperopt):
    code, _, err = hyperopt("run", "digits_lr", "--mode", "forward", "--mode")
    assert code == 2
    assert "requires an argument" in err
