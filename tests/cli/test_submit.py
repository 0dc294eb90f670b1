"""`hyperopt submit`, `status`, `logs` and `cancel` from end to end, on programs that stand in for Slurm's."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hyperopt_cli.recipe import load
from hyperopt_cli.run_directory.status import LiveStatus
from tests.cli.test_bad_input import GOOD

ACCEPTED = 'echo "sbatch: Job 7 to start at 2026-01-01T00:00:00 using 1 processors on nodes n1" >&2'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """`programs(squeue="echo ...")` puts programs of that text first on the PATH; each notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(**texts):
        for name, text in texts.items():
            path = folder / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >>{shlex.quote(str(folder / "calls"))}\n{text}\n')
            path.chmod(0o755)
        return folder / "calls"

    return put


@pytest.fixture
def slurm(programs):
    """A Slurm that takes everything as job 12, which waits."""
    return programs(
        sbatch=f'case "$1" in --test-only) cat >/dev/null; {ACCEPTED} ;; *) echo "12;cluster" ;; esac',
        squeue='echo "N/A|PENDING|Priority"',
        scontrol='echo "JobId=12 Restarts=1 JobState=PENDING"',
        scancel=":",
    )


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def the_folder():
    (folder,) = Path("runs").iterdir()
    return folder


def test_a_dry_run_prints_a_script_that_sh_can_read_and_leaves_nothing(hyperopt, recipe, no_slurm, tmp_path):
    before = set(tmp_path.rglob("*"))
    code, out, err = hyperopt("submit", recipe, "steps=5", "--array", "seed=0..2", "--time", "10", "--dry-run")
    assert (code, err) == (0, "")
    assert "#SBATCH --array=0-2" in out
    assert f"#SBATCH --chdir={tmp_path}" in out
    assert f"python={sys.executable}" in out
    assert subprocess.run(["/bin/sh", "-n"], input=out, text=True, capture_output=True).stderr == ""
    assert set(tmp_path.rglob("*")) == before


def test_several_arrays_multiply(hyperopt, recipe, no_slurm):
    arrays = ["--array", "seed=0..2", "--array", "mode=forward,reverse"]
    code, out, err = hyperopt("submit", recipe, *arrays, "--dry-run")
    assert (code, err) == (0, "")
    assert "#SBATCH --array=0-5" in out
    places = [out.index(f"seed={seed},mode={mode}") for seed in range(3) for mode in ("forward", "reverse")]
    assert places == sorted(places)


def test_a_dry_run_shows_how_ranks_are_started(hyperopt, recipe, no_slurm):
    code, out, err = hyperopt("submit", recipe, "--gpus", "4", "--nodes", "2", "--dry-run")
    assert (code, err) == (0, "")
    assert "#SBATCH --ntasks-per-node=2\n#SBATCH --gpus-per-node=2\n#SBATCH --nodes=2\n" in out
    assert "srun --ntasks=4 --nodes=2 --ntasks-per-node=2 " in out
    assert subprocess.run(["/bin/sh", "-n"], input=out, text=True, capture_output=True).stderr == ""


def test_a_job_is_asked_about_then_frozen_then_submitted(hyperopt, recipe, slurm, tmp_path):
    code, out, err = hyperopt("submit", recipe, "steps=5", "--array", "seed=0..1,mode=forward,reverse")
    assert (code, err) == (0, "")
    assert "submitted job 12, 4 runs" in out
    assert "to start at 2026" in out
    folder = the_folder()
    calls = slurm.read_text().splitlines()
    assert calls == ["sbatch --test-only", f"sbatch --parsable {tmp_path / folder}/job.sbatch"]
    job = json.loads((folder / "job.json").read_text())
    assert job["job_id"] == "12"
    assert [element["name"] for element in job["elements"]][1] == "seed=0,mode=reverse"
    for element in job["elements"]:
        frozen = load(folder / "recipes" / f"{element['name']}.yaml")
        assert frozen == load(recipe, ["steps=5", *element["overrides"]])


def test_what_was_submitted_stays_whatever_happens_to_the_recipe(hyperopt, recipe, slurm):
    assert hyperopt("submit", recipe).code == 0
    frozen = (the_folder() / "recipes" / "run.yaml").read_text()
    recipe.write_text(GOOD.replace("steps: 3", "steps: 4"))
    assert (the_folder() / "recipes" / "run.yaml").read_text() == frozen
    assert yaml.safe_load(frozen)["steps"] == 3


def test_json_says_what_a_script_needs(hyperopt, recipe, slurm):
    out = json.loads(hyperopt("submit", recipe, "--array", "seed=0..1", "--json").out)
    assert out == {"job_id": "12", "directory": str(the_folder()), "elements": ["seed=0", "seed=1"]}


def test_what_slurm_will_never_run_is_not_submitted_and_its_words_are_shown(hyperopt, recipe, programs):
    calls = programs(
        sbatch='cat >/dev/null; echo "allocation failure: Requested node configuration is not available" >&2; exit 1'
    )
    code, _, err = hyperopt("submit", recipe)
    assert code == 2
    assert "Requested node configuration is not available; nothing was submitted" in err
    assert calls.read_text() == "sbatch --test-only\n"
    assert not Path("runs").exists()


def test_a_job_that_slurm_refuses_after_all_leaves_no_folder(hyperopt, recipe, programs):
    refused = 'echo "sbatch: error: QOS limit" >&2; exit 1'
    programs(sbatch=f'case "$1" in --test-only) cat >/dev/null; {ACCEPTED} ;; *) {refused} ;; esac')
    code, _, err = hyperopt("submit", recipe)
    assert code == 2
    assert "Slurm has not taken the job: QOS limit" in err
    assert not list(Path("runs").iterdir())


def test_without_slurm_the_dry_run_is_named(hyperopt, recipe, no_slurm):
    code, _, err = hyperopt("submit", recipe)
    assert code == 2
    assert "no sbatch here" in err
    assert "--dry-run" in err
    assert not Path("runs").exists()


def test_variables_of_a_job_that_submits_are_not_handed_on(hyperopt, recipe, programs, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "9")
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    programs(sbatch='env | grep ^SLURM_ >"${0%/*}/seen"; cat >/dev/null; echo 12')
    assert hyperopt("submit", recipe).code == 0
    assert Path("bin/seen").read_text() == "SLURM_CONF=/etc/mine.conf\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps=none"], "steps"),
        (["stesp=3"], "did you mean steps"),
        (["--array", "sede=0..3"], "did you mean seed"),
        (["--array", "steps=3,0"], "at least 1"),
        (["--array", "mode=forward,revers"], "revers"),
        (["seed=3", "--array", "seed=0..3"], "--array varies seed too"),
        (["--mode", "reverse", "--array", "mode=forward,reverse"], "--array varies mode too"),
        (["--array", "seed=0..3", "--array", "seed=7"], "got seed twice"),
        (["--array", "seed=0..999", "--array", "steps=1..11"], "got 11000 elements; at most 10000"),
        (["--gpus", "2", "--nproc", "3"], "a process uses one GPU"),
        (["--gpus", "3", "--nodes", "2"], "a multiple of 2"),
        (["--nproc", "2", "shard=columns"], "columns: only mode: forward has columns, not auto"),
        (["--nproc", "2", "--mode", "forward", "--array", "shard=columns,replicas"], "replicas: 2 ranks for 1"),
        (["--time", "1"], "told to stop"),
        (["--sbatch-line", "--mem=1G\nrm -rf /"], "one line of options"),
        (["--partition", "a b"], "--partition"),
        (["--to", "cloud"], "must be slurm or kubernetes"),
        (["--image", "a"], "--to kubernetes"),
        (["--to", "kubernetes"], "needs --image"),
        (["--to", "kubernetes", "--image", "a", "--claim", "b"], "add --dry-run"),
        (["--to", "kubernetes", "--image", "a", "--claim", "b", "--dry-run", "--partition", "x"], "--partition is not"),
        (["--to", "kubernetes", "--image", "a", "--claim", "b", "--dry-run", "--nodes", "2"], "a pod lies on one node"),
        (["--out", "small.yaml"], "exists; a job needs a new folder"),
    ],
)
def test_what_cannot_be_submitted_exits_with_2_and_asks_slurm_nothing(hyperopt, recipe, slurm, arguments, message):
    code, _, err = hyperopt("submit", recipe, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not slurm.exists()
    assert not Path("runs").exists()


def test_a_manifest_for_kubernetes_is_printed(hyperopt, recipe, no_slurm):
    there = ["--to", "kubernetes", "--image", "a/b:1", "--claim", "c", "--dry-run"]
    code, out, err = hyperopt("submit", recipe, "steps=5", *there)
    assert (code, err) == (0, "")
    config, job = yaml.safe_load_all(out)
    assert yaml.safe_load(config["data"]["0.yaml"])["steps"] == 5
    assert job["kind"] == "Job"


def test_status_tells_slurms_state_and_the_runs_own(hyperopt, recipe, slurm):
    hyperopt("submit", recipe)
    run = the_folder() / "run"
    line = {key: {} for key in ("hyperparameters", "hypergradient", "raw_hyperparameters", "raw_hypergradient")}
    line |= {"training_loss": 1, "wall_s": 1, "peak_bytes": 1, "num_gradients": 1, "num_hvps": 1}
    run.mkdir()
    LiveStatus(run / "status.json", outer_step=2)
    losses = [0.5, 0.25, "NaN"]
    lines = [json.dumps({**line, "outer_step": n, "validation_loss": loss}) for n, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for arguments in ((), ("12",), (the_folder(),), (run,)):
        code, out, err = hyperopt("status", *arguments)
        assert (code, err) == (0, "")
        row = out.splitlines()[-1].split()
        assert row[:4] == ["12", "run", "PENDING", "(Priority)"]
        assert row[4:6] == ["1", "running"]
        assert row[-2:] == ["2", "0.25"]
    ((element,),) = (job["elements"] for job in json.loads(hyperopt("status", "--json").out))
    assert element["slurm"] == "PENDING"
    assert element["requeues"] == 1
    assert element["best"] == 0.25
    assert 0 <= element["heartbeat_s"] < 60


def test_status_works_where_slurm_has_forgotten_the_job_or_is_not_there(hyperopt, recipe, slurm, programs, monkeypatch):
    hyperopt("submit", recipe, "--array", "seed=0..1")
    LiveStatus(_made(the_folder() / "seed=1") / "status.json").finish("done")
    programs(squeue='echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1', scontrol="exit 1")
    code, out, _ = hyperopt("status")
    assert code == 0
    assert [line.split()[:5] for line in out.splitlines()[2:]] == [
        ["12_0", "seed=0", "-", "-", "-"],
        ["12_1", "seed=1", "-", "-", "done"],
    ]
    programs(squeue='echo "Unable to contact slurm controller" >&2; exit 1')
    assert "Unable to contact slurm controller" in hyperopt("status").out
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no Slurm here" in hyperopt("status").out


def test_a_damaged_job_does_not_hide_the_others(hyperopt, recipe, slurm):
    hyperopt("submit", recipe)
    (_made(Path("runs") / "other") / "job.json").write_text("{}")
    code, out, err = hyperopt("status")
    assert code == 0
    assert "PENDING" in out
    assert "other/job.json is of version None" in err
    assert hyperopt("status", "runs/other").code == 2


def test_logs_are_printed_with_the_name_of_each_element(hyperopt, recipe, slurm):
    hyperopt("submit", recipe, "--array", "seed=0..1")
    code, out, err = hyperopt("logs")
    assert (code, out) == (0, "")
    assert "nothing was printed yet: PENDING (Priority)" in err
    for task in range(2):
        (the_folder() / "output" / f"{task}.txt").write_text(f"this is {task}\n")
    assert hyperopt("logs").out == "==> seed=0 <==\nthis is 0\n==> seed=1 <==\nthis is 1\n"
    assert hyperopt("logs", "12_1").out == "this is 1\n"


def test_following_logs_ends_with_the_job(hyperopt, recipe, slurm, programs):
    hyperopt("submit", recipe)
    (the_folder() / "output" / "0.txt").write_text("all\n")
    programs(squeue='echo "N/A|COMPLETED|None"')
    assert hyperopt("logs", "--follow", "12").out == "all\n"


def test_cancelling_asks_the_runs_first_and_marks_them(hyperopt, recipe, slurm, programs):
    hyperopt("submit", recipe, "--array", "seed=0..2")
    slurm.unlink()
    # One has ended, one runs, one waits; all have ended when they are asked about for the second time.
    first = 'echo "0|COMPLETED|None"; echo "1|RUNNING|None"; echo "2|PENDING|Resources"'
    programs(squeue=f'if [ ! -e "${{0%/*}}/asked" ]; then {first}; fi; touch "${{0%/*}}/asked"')
    code, out, err = hyperopt("cancel", "12")
    assert (code, err) == (0, "")
    assert out == "cancelled: seed=1, seed=2\n"
    assert {path.name for path in (the_folder() / "cancelled").iterdir()} == {"seed=0", "seed=1", "seed=2"}
    assert [call for call in slurm.read_text().splitlines() if call.startswith("scancel")] == [
        "scancel 12_2",
        "scancel --signal=TERM --state=RUNNING 12_1",
    ]


def test_a_run_that_does_not_stop_in_time_is_ended_by_slurm(hyperopt, recipe, slurm, programs):
    hyperopt("submit", recipe, "--array", "seed=0..1")
    programs(squeue='echo "0|RUNNING|None"; echo "1|RUNNING|None"')
    code, out, _ = hyperopt("cancel", "12_1", "--wait", "0")
    assert code == 0
    assert "still saving after 0 s, and ended by Slurm: seed=1" in out
    assert slurm.read_text().splitlines()[-1] == "scancel 12_1"
    assert {path.name for path in (the_folder() / "cancelled").iterdir()} == {"seed=1"}


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_what_is_no_job_exits_with_2(hyperopt, command):
    code, _, err = hyperopt(command, "nowhere")
    assert code == 2
    assert "nowhere does not exist; give the folder of a job" in err


@pytest.mark.parametrize("command", ["status", "logs"])
def test_without_any_job_submit_is_named(hyperopt, command):
    code, _, err = hyperopt(command)
    assert code == 2
    assert "submit one, such as hyperopt submit digits_lr" in err


def test_cancel_without_slurm_marks_nothing(hyperopt, recipe, slurm, monkeypatch):
    hyperopt("submit", recipe)
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = hyperopt("cancel", "12")
    assert code == 2
    assert "no squeue here" in err
    assert not (the_folder() / "cancelled").exists()


def _made(folder):
    folder.mkdir()
    return folder


TRIED = """
import torch
class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): raise ArithmeticError("no way back")
def backward(outputs, targets):
    return Refuses.apply(torch.nn.functional.cross_entropy(outputs, targets))
def nan(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets) * float("nan")
def constant(outputs, targets):
    return torch.tensor(1.0)
def numbers():
    return torch.zeros(500, 4), torch.linspace(0, 1, 500)
def absent():
    raise FileNotFoundError("/elsewhere/train.bin")
class Narrow(torch.nn.Linear):
    def forward(self, x): return super().forward(x[..., :3])
def narrow(num_classes): return Narrow(8, num_classes)
"""
FAILING = {
    "backward": ("loss={call: tried_own.backward}", "ArithmeticError: no way back"),
    "nan": ("loss={call: tried_own.nan}", "it is nan before the first step"),
    "explodes at once": ("hyperparameters.lr={value: 1.0e39}", "w is not finite at inner step 1"),
    "constant": ("loss={call: tried_own.constant}", "it depends on no parameter of the model"),
    "numbers": ("dataset={call: tried_own.numbers}", "the argument num_classes is missing"),
    "absent": ("dataset={call: tried_own.absent}", "FileNotFoundError: /elsewhere/train.bin"),
    "shapes": ("model={call: tried_own.narrow}", "model: with inputs of shape"),
    "batch": ("dataset.batch_size=100000", "100000"),
}


@pytest.mark.parametrize(("override", "said"), FAILING.values(), ids=FAILING)
def test_what_fails_in_its_first_step_is_not_submitted_unless_told_to(override, said, hyperopt, recipe, slurm):
    Path("tried_own.py").write_text(TRIED)
    given = ("submit", recipe, override, "--allow-import", "tried_own.*")
    for options in ((), ("--dry-run",)):
        code, out, err = hyperopt(*given, *options)
        assert (code, out) == (2, "")
        assert said in err
        assert "Traceback" not in err
    assert not Path("runs").exists()
    (line,) = [line for line in err.splitlines() if line.startswith("to submit it without trying it here: ")]
    words = shlex.split(line.partition(": ")[2])
    assert words[-2:] == ["--dry-run", "--no-try"]
    code, out, _ = hyperopt(*words[1:])
    assert code == 0
    assert out.startswith("#!/bin/sh")


def test_every_distinct_element_is_tried_and_all_that_fail_are_said(hyperopt, recipe, slurm):
    Path("tried_own.py").write_text(TRIED)
    losses = "loss=cross_entropy,{call: tried_own.nan},{call: tried_own.backward}"
    code, _, err = hyperopt("submit", recipe, "--array", f"seed=0..2,{losses}", "--allow-import", "tried_own.*")
    assert code == 2
    failed = [line for line in err.splitlines() if "tried_own" in line and not line.startswith("to ")]
    assert [line.partition(",")[0] for line in failed] == ["seed=0", "seed=0"]
    assert "it is nan before the first step" in failed[0]
    assert "no way back" in failed[1]


def test_lower_precisions_and_gpus_are_tried_on_the_cpu(hyperopt, recipe, slurm):
    code, out, err = hyperopt("submit", recipe, "precision=tf32", "--device", "cuda", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("#!/bin/sh")
