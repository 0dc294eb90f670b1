"""What may be asked of a cluster."""

import pytest

from hyperopt_cli.cluster.request import OWN_OPTIONS, Request, seconds
from hyperopt_cli.errors import UsageError


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("5", 300),
        ("5:30", 330),
        ("0:30", 30),
        ("2:00:00", 7200),
        ("1-0", 86400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
    ],
)
def test_times_are_read_as_the_manual_of_sbatch_says(time, expected):
    assert seconds(time) == expected


@pytest.mark.parametrize("time", ["", "2h", "1:2:3:4", "-5", "1-", "0", "0:00", "٣", "5 ", "UNLIMITED", "$(x)", "1\n2"])
def test_what_is_no_time_is_refused(time):
    with pytest.raises(UsageError, match="--time"):
        seconds(time)


def test_a_run_that_would_be_stopped_at_once_is_refused():
    with pytest.raises(UsageError, match="told to stop --grace 180 seconds before"):
        Request(time="3")
    assert Request(time="3", grace_s=179).time_s == 180


@pytest.mark.parametrize("value", ["a b", "a\nb", "$(id)", "`id`", "a;b", "a'b", 'a"b', "", "--wrap=x y"])
@pytest.mark.parametrize("option", ["partition", "account", "time"])
def test_names_of_slurm_are_plain_words(option, value):
    with pytest.raises(UsageError, match=f"--{option}"):
        Request(**{option: value})


@pytest.mark.parametrize("option", ["gpus", "nodes"])
def test_more_than_one_process_can_use_is_refused(option):
    assert getattr(Request(**{option: 1}), option) == 1
    with pytest.raises(UsageError, match=f"--{option} 2: a run is one process"):
        Request(**{option: 2})


@pytest.mark.parametrize("line", ["--constraint=a100", '--constraint="a b"', "-C a100", " --mem=8G --exclusive"])
def test_a_line_of_options_is_taken(line):
    assert Request(sbatch_lines=(line,)).sbatch_lines == (line,)


@pytest.mark.parametrize("line", ["", "rm -rf /", "--mem=8G\nrm -rf /", "--mem=8G\r", "a100", "--comment='x"])
def test_what_is_no_line_of_options_is_refused(line):
    with pytest.raises(UsageError, match="--sbatch-line"):
        Request(sbatch_lines=(line,))


@pytest.mark.parametrize("option", [*OWN_OPTIONS, "-a", "-o", "-D", "-J", "-n"])
def test_options_that_the_script_needs_are_refused_with_what_to_do(option):
    for line in (option, f"{option}=1", f"--mem=1G {option} 1"):
        with pytest.raises(UsageError, match=r"which hyperopt sets itself: \w"):
            Request(sbatch_lines=(line,))
