"""How a process finds out which rank it is, and joins the others."""

import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from hyperopt_cli.errors import RankLostError, UsageError
from hyperopt_cli.ranks import joining
from hyperopt_cli.ranks.group import ALONE
from hyperopt_cli.ranks.joining import joined
from hyperopt_cli.ranks.launching import free_port, launched
from hyperopt_cli.ranks.place import FIRST_PORT, NUM_PORTS, Place, place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
# What Slurm sets in every script, and what srun adds for its tasks.
BATCH = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4"}
SRUN = {
    **BATCH,
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


def test_torchrun_says_who_is_who():
    assert place(TORCHRUN) == Place(3, 4, 1, "n1", 29500)


def test_srun_says_who_is_who_and_the_first_node_listens():
    found = place(SRUN)
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.address) == (3, 4, 1, "gpu03")
    assert FIRST_PORT <= found.port < FIRST_PORT + NUM_PORTS


def test_all_tasks_of_a_step_get_the_same_port_and_other_steps_others():
    def port(**changed: str) -> int:
        found = place({**SRUN, **changed})
        assert found is not None
        return found.port

    assert port(SLURM_PROCID="0", SLURM_LOCALID="0") == port()
    others = [{"SLURM_JOB_ID": "13"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}]
    assert len({port(), *(port(**other) for other in others)}) == 4


def test_an_address_that_is_given_is_used():
    found = place({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert found is not None
    assert (found.address, found.port) == ("10.0.0.1", 4000)


@pytest.mark.parametrize(
    "env",
    [
        {},
        BATCH,
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
        {"RANK": "3"},
    ],
    ids=["nothing", "a batch script", "one task", "one process", "a word of something else"],
)
def test_a_process_that_is_no_rank_is_alone(env):
    assert place(env) is None


def test_a_launcher_within_a_task_counts_before_srun():
    assert place({**SRUN, **TORCHRUN}) == Place(3, 4, 1, "n1", 29500)


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_torchruns_words_are_refused(missing):
    with pytest.raises(UsageError, match=f"{missing} is not set.*one launcher"):
        place({key: value for key, value in TORCHRUN.items() if key != missing})


@pytest.mark.parametrize("missing", ["SLURM_LOCALID", "SLURM_STEP_NODELIST"])
def test_half_of_sruns_words_are_refused(missing):
    with pytest.raises(UsageError, match=f"{missing} is not set"):
        place({key: value for key, value in SRUN.items() if key != missing})


@pytest.mark.parametrize("text", ["x", "-1", "1.5"])
def test_a_rank_that_is_no_number_is_refused(text):
    with pytest.raises(UsageError, match="RANK: got"):
        place({**TORCHRUN, "RANK": text})


def test_who_is_alone_joins_nobody():
    with joined(None, "columns") as ranks:
        assert ranks == ALONE


def test_a_first_rank_that_does_not_come_is_missed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(joining, "LONGEST_WAIT", timedelta(seconds=0.5))
    port = free_port()
    with (
        pytest.raises(RankLostError, match=f"rank 1 of 2 at 127.0.0.1:{port}"),
        joined(Place(1, 2, 1, "127.0.0.1", port), "columns"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("error", [False, True])
def test_no_rank_leaves_before_the_first(error: bool, tmp_path: Path):
    """Launchers end what is left some time after one has left."""
    text = (
        "import os, time\n"
        "from hyperopt_cli.ranks.joining import joined\n"
        "from hyperopt_cli.ranks.place import place\n"
        "with joined(place(), 'columns') as ranks:\n"
        "    if ranks.is_lead:\n"
        "        time.sleep(2)\n"
        f"        open({str(tmp_path / 'lead')!r}, 'w').write(str(time.time()))\n"
        f"        if {error}: os._exit(3)\n"
        f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(str(time.time()))\n"
        "os._exit(0)\n"  # as the command line does: Python's own end may abort
    )
    began = time.time()
    assert launched([sys.executable, "-c", text], 2) == (3 if error else 0, [])
    assert began + 2 <= float((tmp_path / "lead").read_text()) <= float((tmp_path / "1").read_text())
