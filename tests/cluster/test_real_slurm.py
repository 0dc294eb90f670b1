"""Jobs on a real Slurm: submitted, stopped by its signals, requeued, resumed, preempted, cancelled."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hyperopt_cli.cluster import slurm as calls
from hyperopt_cli.cluster.job import JobFolder, read_job, select
from hyperopt_cli.cluster.overview import Row, overview
from hyperopt_cli.run_directory.json_files import write_text
from tests.cluster.conftest import CPUS, wait_until

pytestmark = pytest.mark.slow

# A network that takes as long as the file `pace` says, so that there is something to stop. Each rank of several notes
# its training batches, by its number and that of its attempt.
MODULE = """
import os
import time
from pathlib import Path

import torch


class Slow(torch.nn.Linear):
    def forward(self, x):
        time.sleep(float(Path('pace').read_text()))
        if len(x) == 20:
            with open(f"steps-{os.environ['SLURM_PROCID']}-{os.environ.get('SLURM_RESTART_COUNT', 0)}", 'a') as file:
                file.write(f'{os.getpid()}\\n')
        return super().forward(x)


def model():
    return Slow(3, 1)


def data():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    return x, x[:, 0] - 2 * x[:, 1]
"""
RECIPE = """
model: {call: slow.model}
dataset: {call: slow.data, batch_size: 20}
loss: mse
optimizer: {name: sgd}
steps: 40
hyperparameters: {lr: {initial: 0.01, transform: log}, momentum: {initial: 0.5, transform: logit}}
outer: {optimizer: sign, lr: 0.1, steps: 19}
mode: {name: reverse, slots: all, compile: false}
"""
IGNORED = {"wall_s", "peak_bytes"}
SLOW_S, QUICK_S = 0.015, 0.0


@pytest.fixture
def submit(slurm, hyperopt, tmp_path):
    """`submit(*arguments)`: the folder of a new job, from a folder whose name is no word of shell."""
    (tmp_path / "slow.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    set_pace(SLOW_S)

    def call(*arguments):
        code, out, err = hyperopt("submit", "recipe.yaml", "--allow-import", "slow.*", "--no-try", "--json", *arguments)
        assert code == 0, err
        return JobFolder(Path(json.loads(out)["directory"]))

    return call


def set_pace(seconds: float) -> None:
    """How long each forward pass takes from now on; the file is never seen half written."""
    write_text(Path("pace"), str(seconds))


def rows(folder: JobFolder) -> list[Row]:
    return list(overview(select(str(folder.root))).rows)


def wait_for(folder: JobFolder, state: str, seconds: float, element: int = 0, requeues: int = 0) -> None:
    def holds() -> bool:
        row = rows(folder)[element]
        return row.slurm == state and (row.requeues or 0) >= requeues

    try:
        wait_until(holds, seconds, f"{state} with {requeues} requeues")
    except AssertionError:
        print(rows(folder), *(path.read_text() for path in sorted(folder.outputs.iterdir())), sep="\n")
        raise


def wait_for_steps(folder: JobFolder, num: int, element: int = 0) -> None:
    path = folder.run(read_job(folder).elements[element]).metrics
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= num, 60, f"{num} outer steps")


def output(folder: JobFolder, element: int = 0) -> str:
    return (folder.outputs / f"{element}.txt").read_text()


def measured(folder: JobFolder, element: int = 0) -> list[dict[str, object]]:
    lines = folder.run(read_job(folder).elements[element]).metrics.read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in IGNORED} for line in lines]


def checkpoint(folder: JobFolder, element: int = 0) -> str:
    return (folder.run(read_job(folder).elements[element]).checkpoints / "LATEST").read_text().strip()


def make_room(seconds: int) -> None:
    """An urgent job that needs the whole node."""
    wide = [f"--ntasks={CPUS}", "--partition=urgent", "--output=/dev/null", f"--wrap=sleep {seconds}"]
    subprocess.run(["sbatch", *wide], check=True, capture_output=True)


def partition(setting: str) -> None:
    subprocess.run(["scontrol", "update", "partitionname=main", setting], check=True, capture_output=True)


def test_the_time_limit_stops_a_run_which_is_requeued_and_ends_with_the_bits_of_an_undisturbed_one(submit):
    # A minute is the shortest limit. Slurm looks at it every 30 s, and sends the signal up to 30 s early.
    set_pace(3 * SLOW_S)
    limited = submit("--time", "1", "--grace", "15")
    wait_for(limited, "PENDING", 80, requeues=1)
    assert 0 < len(measured(limited)) < 20
    # On a busy machine the limit would come again and again before a run has loaded what it needs.
    longer = ["scontrol", "update", f"jobid={read_job(limited).job_id}", "timelimit=10"]
    subprocess.run(longer, check=True, capture_output=True)
    set_pace(QUICK_S)
    undisturbed = submit()
    wait_for(undisturbed, "COMPLETED", 60)
    wait_for(limited, "COMPLETED", 60, requeues=1)
    assert "requeued" in output(limited)
    assert "requeued" not in output(undisturbed)
    assert [line["outer_step"] for line in measured(undisturbed)] == list(range(20))
    assert measured(limited) == measured(undisturbed)
    assert rows(limited)[0].run == "done"
    assert rows(limited)[0].best == rows(undisturbed)[0].best


def test_an_array_makes_room_and_goes_on_and_each_element_is_requeued_by_itself(submit):
    folder = submit("--array", "seed=0..1")
    for element in range(2):
        wait_for_steps(folder, 2, element)
    make_room(2)
    for element in range(2):
        wait_for(folder, "PENDING", 20, element)
        assert checkpoint(folder, element)
        assert rows(folder)[element].best is not None
    for element in range(2):
        wait_for(folder, "RUNNING", 60, element, requeues=1)
        wait_for_steps(folder, 4, element)
    # The last element of an array bears the array's own number.
    job = read_job(folder)
    calls.ask_to_stop([job.id_of(job.elements[1])])
    wait_for(folder, "PENDING", 20, element=1, requeues=2)
    assert rows(folder)[0].slurm in ("RUNNING", "COMPLETED")
    assert rows(folder)[0].requeues == 1
    set_pace(QUICK_S)
    wait_for(folder, "COMPLETED", 60, element=0)
    wait_for(folder, "COMPLETED", 60, element=1)
    for element in range(2):
        assert [line["outer_step"] for line in measured(folder, element)] == list(range(20))
    assert measured(folder, 0) != measured(folder, 1)
    assert output(folder, 0).count("hyperopt: stopped; requeued") == 1
    assert output(folder, 1).count("hyperopt: stopped; requeued") == 2


def test_a_run_that_is_preempted_before_it_listens_is_not_lost(submit):
    folder = submit()
    wait_for(folder, "RUNNING", 20)
    make_room(1)
    wait_for(folder, "RUNNING", 60, requeues=1)
    wait_for_steps(folder, 1)


def test_a_run_that_is_preempted_without_a_grace_time_saves_and_slurm_requeues_it(submit):
    folder = submit()
    wait_for_steps(folder, 2)
    partition("GraceTime=0")
    try:
        make_room(1)
        wait_for(folder, "RUNNING", 60, requeues=1)
    finally:
        partition("GraceTime=60")
    assert "hyperopt: stopped; requeued" not in output(folder)
    saved = checkpoint(folder)
    set_pace(QUICK_S)
    wait_for(folder, "COMPLETED", 60)
    assert [line["outer_step"] for line in measured(folder)] == list(range(20))
    assert checkpoint(folder) != saved


def test_cancelled_runs_have_saved_and_are_not_requeued(submit, hyperopt):
    jobs = by_hyperopt, by_slurm = submit(), submit()
    for folder in jobs:
        wait_for_steps(folder, 2)
    calls.cancel([str(read_job(by_slurm).job_id)])
    assert hyperopt("cancel", by_hyperopt.root).out == "cancelled: run\n"
    for folder in jobs:
        wait_until(lambda folder=folder: rows(folder)[0].slurm in ("FAILED", "CANCELLED"), 30, "the job to end")
        assert rows(folder)[0].run == "interrupted"
        assert checkpoint(folder)
        assert "requeued" not in output(folder).replace("not requeued", "")
    time.sleep(2)  # a requeue would have come by now
    assert [rows(folder)[0].slurm for folder in jobs] == ["FAILED", "CANCELLED"]
    assert [rows(folder)[0].requeues for folder in jobs] == [0, 0]


def test_an_element_that_waits_is_cancelled_alone(submit, hyperopt):
    make_room(60)
    folder = submit("--array", "seed=0..1")
    assert hyperopt("cancel", folder.root / "seed=0").code == 0
    wait_until(lambda: rows(folder)[0].slurm in ("", "CANCELLED"), 20, "one to be cancelled")
    assert rows(folder)[0].run == "cancelled"
    assert (rows(folder)[1].slurm, rows(folder)[1].run) == ("PENDING", "")


TWO_RANKS = ("--nproc", "2", "mode={name: forward, engine: forward_over_reverse, columns_at_once: 1}", "outer.steps=4")


def steps(rank: int, attempt: int = 0) -> list[str]:
    """A line for each training batch that a rank has taken: its process."""
    path = Path(f"steps-{rank}-{attempt}")
    return path.read_text().splitlines() if path.exists() else []


def test_two_ranks_that_are_signalled_stop_at_the_same_inner_step_and_go_on_with_the_bits_of_undisturbed_ones(submit):
    """A block of tangents of one step beside the state of another would end with other bits.

    The batches that each has taken are no measure of it: the checks examine more steps where there is more time.
    """
    folder = submit(*TWO_RANKS)
    wait_for_steps(folder, 2)
    subprocess.run(["scancel", "--signal=USR1", str(read_job(folder).job_id)], check=True)
    wait_for(folder, "PENDING", 20)
    assert steps(0)
    assert steps(1)
    assert "stopped by SIGUSR1; a checkpoint is kept" in output(folder)
    assert output(folder).count("outer 1/4") == 1  # the lead alone speaks
    assert re.fullmatch(r"outer-\d{6}-\d{8}", checkpoint(folder))
    set_pace(QUICK_S)
    wait_for(folder, "COMPLETED", 60, requeues=1)
    undisturbed = submit(*TWO_RANKS)
    wait_for(undisturbed, "COMPLETED", 60)
    assert measured(folder) == measured(undisturbed)
    assert [line["outer_step"] for line in measured(folder)] == list(range(5))


def test_where_a_rank_is_killed_the_others_end_and_the_run_can_be_continued(submit):
    folder = submit(*TWO_RANKS, "checkpoint_every_s=0.1")
    wait_for_steps(folder, 2)
    os.kill(int(steps(1)[-1]), signal.SIGKILL)
    wait_for(folder, "FAILED", 30)
    assert "rank 0 of 2: another rank of this run is gone" in output(folder)
    assert "with any number of ranks" in output(folder)
    saved = checkpoint(folder)
    assert rows(folder)[0].run == "interrupted"
    set_pace(QUICK_S)
    subprocess.run(["sbatch", str(folder.script)], check=True, capture_output=True)
    wait_until(lambda: rows(folder)[0].run == "done", 60, "the run to be continued")
    assert f"continued from {saved}" in output(folder)
    assert [line["outer_step"] for line in measured(folder)] == list(range(5))


def test_the_runs_own_exit_code_is_the_jobs(submit, tmp_path):
    make_room(3)
    folder = submit()
    (tmp_path / "slow.py").unlink()  # the run will refuse its recipe
    wait_for(folder, "FAILED", 60)
    shown = ["scontrol", "show", "job", "-o", str(read_job(folder).job_id)]
    assert " ExitCode=2:0 " in subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    assert rows(folder)[0].requeues == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition", "nowhere"], "invalid partition"),
        (["--gpus", "1"], "invalid generic resource"),
        (["--sbatch-line", "--mem=100T"], "not available"),
        (["--array", "seed=1..200"], "array"),
    ],
)
def test_what_slurm_would_never_run_is_refused_with_its_words(slurm, hyperopt, submit, arguments, message):
    code, _, err = hyperopt("submit", "recipe.yaml", "--allow-import", "slow.*", "--no-try", *arguments)
    assert code == 2
    assert message in err.lower()
    assert "nothing was submitted" in err
    assert not Path("runs").exists()


def test_slurm_reads_every_name_as_it_is_and_following_the_logs_ends_with_the_job(
    submit, hyperopt, tmp_path, monkeypatch
):
    name = 'the a b it\'s "hi" $(touch pwned) `touch pwned` #x 50%j é;& place'
    place = tmp_path / name
    place.mkdir()
    for file in ("slow.py", "recipe.yaml", "pace"):
        (place / file).write_text((tmp_path / file).read_text())
    monkeypatch.chdir(place)
    folder = submit(
        "outer.steps=0", "--out", f"{name}/job", "--array", "dataset.batch_size=20", "--allow-import", "$(x)"
    )
    code, out, err = hyperopt("logs", "--follow", folder.root)
    assert (code, err) == (0, "")
    assert "outer 0/0" in out
    assert rows(folder)[0].slurm == "COMPLETED"
    written = {"slow.py", "recipe.yaml", "pace", "steps-0-0", name}
    assert {path.name for path in place.iterdir()} - {"__pycache__"} == written
    assert not list(tmp_path.rglob("pwned"))
