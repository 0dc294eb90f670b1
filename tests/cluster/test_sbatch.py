"""The script for Slurm: what it asks for, what it runs, and what it does when the run has ended."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hyperopt_cli.cluster import sbatch
from hyperopt_cli.cluster.array import elements
from hyperopt_cli.cluster.job import Job, JobFolder
from hyperopt_cli.cluster.request import Request
from hyperopt_cli.errors import UsageError

AWKWARD = [
    "a b",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "#x",
    "50%a",
    "é",
    "$HOME",
    "&",
]


def rendered(
    folder, array=None, request=None, python=sys.executable, cwd=Path("/work"), allow_import=(), name="recipe"
):
    request = request or Request()
    job = Job.new(name, request.requeues, elements(*filter(None, [array])))
    return sbatch.render(job, JobFolder(folder), request, python, cwd, allow_import)


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_what_is_asked_for_stands_in_the_script():
    request = Request(1, 1, "2:00:00", "gpu", "lab", grace_s=300, requeues=5, sbatch_lines=('--constraint="a b"',))
    assert directives(rendered(Path("/runs/x"), request=request)) == [
        "--job-name=recipe",
        "--chdir=/work",
        "--output=/runs/x/output/0.txt",
        "--open-mode=append",
        "--ntasks=1",
        "--gpus=1",
        "--nodes=1",
        "--time=2:00:00",
        "--partition=gpu",
        "--account=lab",
        "--signal=TERM@300",
        "--requeue",
        '--constraint="a b"',
    ]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(nproc=4), ["--ntasks=4", "--nodes=1"]),
        (Request(gpus=4), ["--ntasks=4", "--gpus=4", "--nodes=1"]),
        (Request(nodes=2), ["--ntasks=2", "--ntasks-per-node=1", "--nodes=2"]),
        (Request(gpus=8, nodes=2), ["--ntasks=8", "--ntasks-per-node=4", "--gpus-per-node=4", "--nodes=2"]),
    ],
)
def test_ranks_and_gpus_are_divided_evenly_among_nodes(request_, expected):
    words = directives(rendered(Path("/runs/x"), request=request_))
    assert [word for word in words if any(part in word for part in ("ntasks", "gpus", "nodes"))] == expected


def test_an_array_has_a_task_and_a_file_for_each_element():
    script = rendered(Path("/runs/x"), "seed=0..1,mode=forward,reverse")
    assert "--array=0-3" in directives(script)
    assert "--output=/runs/x/output/%a.txt" in directives(script)
    assert "    2) element=seed=1,mode=forward ;;" in script


def test_the_id_of_an_element_is_never_that_of_its_array():
    # The last element of an array to start has the array's number as its own SLURM_JOB_ID.
    assert 'id="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in rendered(Path("/runs/x"), "seed=0..1")
    assert 'id="$SLURM_JOB_ID"' in rendered(Path("/runs/x"))


def test_a_signal_reaches_the_run_and_not_the_script():
    assert "--signal=TERM@180" in directives(rendered(Path("/runs/x")))
    assert "B:" not in rendered(Path("/runs/x"))


@pytest.mark.parametrize("path", ["/runs/a\nb", "/runs/a\rb", "/runs/a\\b", "/runs/a\0b"])
def test_paths_that_a_script_cannot_hold_are_refused(path):
    with pytest.raises(UsageError, match="use another path"):
        rendered(Path(path))
    with pytest.raises(UsageError, match="use another path"):
        rendered(Path("/runs/x"), cwd=Path(path))


class Ended(NamedTuple):
    code: int
    calls: list[str]
    said: str


class Stage:
    """Programs by the names of Slurm's, which say what they were called with; the run is what `run` says in sh."""

    def __init__(self, root, folder="job", array=None, requeues=20, allow_import=(), name="recipe", **asked):
        self.bin, self.folder = root / "bin", root / folder
        self.bin.mkdir()
        self.calls = root / "calls"
        self.calls.touch()
        self.element = elements(*filter(None, [array]))[0].name
        (self.folder / self.element).mkdir(parents=True)
        self.script = root / "job.sbatch"
        request = Request(requeues=requeues, **asked)
        self.script.write_text(rendered(self.folder, array, request, "py", root, allow_import, name))
        self.says(JobState="RUNNING", PreemptTime="None")

    def says(self, **fields):
        shown = " ".join(f"{key}={value}" for key, value in fields.items())
        called = f'echo "scontrol $*" >>{shlex.quote(str(self.calls))}'
        self.program("scontrol", f'case "$1" in show) echo "JobId=5 {shown} Reason=None" ;; *) {called} ;; esac')

    def program(self, name, text):
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, what, **variables):
        report = "import shlex, sys; print('srun', shlex.join(sys.argv[1:]))"
        called = f'{shlex.quote(sys.executable)} -c {shlex.quote(report)} "$@" >>{shlex.quote(str(self.calls))}'
        self.program("srun", f"{called}\ncd {shlex.quote(str(self.folder / self.element))}\n{what}")
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "5", **variables}
        done = subprocess.run(
            ["sh", self.script], env=environment, capture_output=True, text=True, cwd=self.script.parent
        )
        return Ended(done.returncode, self.calls.read_text().splitlines(), done.stderr)


SAVED = "mkdir -p checkpoints; echo outer-000001 >checkpoints/LATEST; exit 75"


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def test_the_run_resumes_in_its_own_folder_from_the_frozen_recipe(tmp_path):
    ended = Stage(tmp_path, allow_import=["mine.*", "$(other)"]).run("exit 0")
    job = tmp_path / "job"
    words = [
        "--ntasks=1",
        "--cpus-per-task=1",
        "py",
        "-P",
        "-m",
        "hyperopt_cli",
        "run",
        str(job / "recipes" / "run.yaml"),
    ]
    words += ["--out", str(job / "run"), "--resume", "auto", "--allow-import", "mine.*", "--allow-import", "$(other)"]
    assert [shlex.split(call) for call in ended.calls] == [["srun", *words]]


def test_each_task_of_an_array_runs_its_element(tmp_path):
    stage = Stage(tmp_path, array="seed=0..1,mode=forward,reverse")
    stage.run("exit 0", SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="4")
    assert f"{tmp_path}/job/recipes/seed=1,mode=forward.yaml" in stage.calls.read_text()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 130, 137, 143])
def test_the_runs_own_end_is_the_jobs(stage, code):
    ended = stage.run(f"echo x >>metrics.jsonl; exit {code}")
    assert ended.code == code
    assert len(ended.calls) == 1


@pytest.mark.parametrize("progress", [SAVED, "echo x >>metrics.jsonl; exit 75"])
def test_a_run_that_saved_and_got_further_is_requeued(stage, progress):
    ended = stage.run(progress)
    assert ended.code == 75
    assert ended.calls[1:] == ["scontrol requeue 5"]


def test_an_element_is_requeued_alone(tmp_path):
    stage = Stage(tmp_path, array="seed=0..1")
    ended = stage.run(SAVED, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="4")
    assert ended.calls[1:] == ["scontrol requeue 4_0"]


@pytest.mark.parametrize("again", ["exit 75", SAVED, "echo '{\"wall_s\": 2}' >metrics.jsonl; exit 75"])
def test_a_run_that_got_no_further_is_not_requeued(stage, again):
    assert stage.run(f"echo '{{\"wall_s\": 1}}' >metrics.jsonl; {SAVED}").calls[1:] == ["scontrol requeue 5"]
    stage.calls.write_text("")
    ended = stage.run(again)
    assert ended.code == 75
    assert len(ended.calls) == 1
    assert "no further than it began; not requeued" in ended.said


def test_requeues_are_counted(tmp_path):
    stage = Stage(tmp_path, requeues=2)
    assert len(stage.run(SAVED, SLURM_RESTART_COUNT="1").calls) == 2
    ended = stage.run("echo outer-000002 >checkpoints/LATEST; exit 75", SLURM_RESTART_COUNT="2")
    assert ended.code == 75
    assert len(ended.calls) == 3
    assert "after 2 requeues" in ended.said


def test_no_requeues_at_all_can_be_asked_for(tmp_path):
    assert len(Stage(tmp_path, requeues=0).run(SAVED).calls) == 1


def test_a_run_that_made_room_for_another_is_requeued_however_little_it_had_done(stage):
    stage.says(JobState="RUNNING", PreemptTime="2026-01-01T00:00:00")
    assert stage.run("exit 75").calls[1:] == ["scontrol requeue 5"]
    stage.calls.write_text("")
    ended = stage.run("kill -TERM $$")
    assert ended.code == 143
    assert ended.calls[1:] == ["scontrol requeue 5"]


@pytest.mark.parametrize("preempted", ["None", "2026-01-01T00:00:00"])
def test_a_requeue_never_undoes_an_scancel(stage, preempted):
    stage.says(JobState="COMPLETING", PreemptTime=preempted)
    ended = stage.run(SAVED)
    assert ended.code == 75
    assert len(ended.calls) == 1


def test_a_cancelled_element_is_neither_started_nor_requeued(stage):
    mark = stage.folder / "cancelled" / "run"
    ended = stage.run(f"mkdir -p {mark}; {SAVED}")
    assert ended.code == 75
    assert len(ended.calls) == 1
    assert "cancelled by hyperopt cancel; not requeued" in ended.said
    assert len(stage.run("exit 0").calls) == 1


def test_a_refused_requeue_is_said(stage):
    stage.program("scontrol", 'case "$1" in show) echo " JobState=RUNNING " ;; *) exit 1 ;; esac')
    ended = stage.run(SAVED)
    assert ended.code == 75
    assert "Slurm refuses to requeue" in ended.said


def test_the_run_has_all_processors_of_the_job(stage):
    assert "--cpus-per-task=8" in shlex.split(stage.run("exit 0", SLURM_CPUS_ON_NODE="8").calls[0])


def test_ranks_share_the_processors_of_their_node(tmp_path):
    stage = Stage(tmp_path, nproc=4, nodes=2)
    threads = tmp_path / "threads"
    words = shlex.split(stage.run(f"echo $OMP_NUM_THREADS >{threads}", SLURM_CPUS_ON_NODE="8").calls[0])
    assert words[1:5] == ["--ntasks=4", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=4"]
    assert threads.read_text() == "4\n"
    stage.run(f"echo $OMP_NUM_THREADS >{threads}", SLURM_CPUS_ON_NODE="8", OMP_NUM_THREADS="3")
    assert threads.read_text() == "3\n"


def test_a_rank_that_ends_leaves_the_others_time_to_end_with_their_own_exit_code(tmp_path):
    words = shlex.split(Stage(tmp_path, nproc=2).run("exit 0").calls[0])
    assert words[5:7] == ["--kill-on-bad-exit=0", f"--wait={sbatch.LOST_GRACE_S}"]


@pytest.mark.parametrize("name", AWKWARD)
def test_no_name_is_taken_for_shell(tmp_path, name):
    stage = Stage(tmp_path, folder=f"the {name} job", array=f"dataset.root='{name.replace(chr(39), '')}'", name=name)
    ended = stage.run(SAVED, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="4")
    assert ended.calls[1:] == ["scontrol requeue 4_0"], ended.said
    assert f"the {name} job/recipes/{stage.element}.yaml" in shlex.split(ended.calls[0])[8]
    assert not list(tmp_path.rglob("pwned*"))
