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


@pytest.mark.parametrize(
    ("request_", "num_ranks", "num_nodes"),
    [
        (Request(), 1, 1),
        (Request(gpus=0), 1, 1),
        (Request(gpus=4), 4, 1),
        (Request(gpus=8, nodes=2), 8, 2),
        (Request(nodes=3), 3, 3),
        (Request(nodes=2, nproc=6), 6, 2),
        (Request(gpus=4, nproc=4), 4, 1),
    ],
)
def test_there_is_a_rank_for_each_gpu_or_node_or_as_many_as_are_asked_for(request_, num_ranks, num_nodes):
    assert (request_.num_ranks, request_.num_nodes) == (num_ranks, num_nodes)


@pytest.mark.parametrize(("gpus", "nproc"), [(4, 2), (1, 2), (2, 1)])
def test_a_process_uses_one_gpu(gpus, nproc):
    with pytest.raises(UsageError, match=f"--nproc {nproc}: got --gpus {gpus}; a process uses one GPU"):
        Request(gpus=gpus, nproc=nproc)


def test_ranks_that_no_node_would_have_its_share_of_are_refused():
    with pytest.raises(UsageError, match=r"--nodes 2: got --gpus 1;.*a multiple of 2"):
        Request(gpus=1, nodes=2)
    with pytest.raises(UsageError, match=r"--nodes 2: got --nproc 3;.*a multiple of 2"):
        Request(nproc=3, nodes=2)


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
