"""The script that Slurm runs, as a person would write it.

`--signal=TERM@180` without `B:` reaches the tasks of the job and not this script, so that `srun` returns the run's own
exit code and the script decides what follows. `scancel` and a preemption without a grace time end the script too, with
a TERM that the run answers by saving: then Slurm alone decides whether the job is run again.

https://slurm.schedmd.com/sbatch.html
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from hyperopt_cli.cluster.job import Job, JobFolder
from hyperopt_cli.cluster.request import Request
from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.naming import folder_name

_SCRIPT = Template("""\
#!/bin/sh
# One run of hyperopt for each element below, written by `hyperopt submit`. Its recipes are frozen beside it.
$directives

job=$job
python=$python
id=$job_id
requeues=$requeues  # how often a run that was stopped is run again
$elements

# What the run has reached: its newest checkpoint, and how many outer steps it has measured.
reached() {
    cat "$$job/$$element/checkpoints/LATEST" 2>/dev/null
    wc -l 2>/dev/null <"$$job/$$element/metrics.jsonl"
}

slurm_says() {
    scontrol show job -o "$$id" | grep -q " $$1"
}

stay() {
    echo "hyperopt: $$1; not requeued" >&2
    exit "$$code"
}

code=75
[ ! -e "$$job/cancelled/$$element" ] || stay "cancelled by hyperopt cancel"
before=$$(reached)

$srun \\
    "$$python" -P -m hyperopt_cli run "$$job/recipes/$$element.yaml" \\
    --out "$$job/$$element" --resume auto$arguments
code=$$?

# 75: stopped by a signal, after a good checkpoint. 143: killed by it, before the run could listen; that is no fault of
# a run that made room for another. All else is the run's own end: 0 done, 2 recipe, 3 diverged ...
preempted=
slurm_says "PreemptTime=[0-9]" && preempted=yes
[ "$$code" -eq 75 ] || [ "$$code$$preempted" = 143yes ] || exit "$$code"
[ ! -e "$$job/cancelled/$$element" ] || stay "cancelled by hyperopt cancel"
# Of a job that it ends, cancelled or to be requeued, Slurm says COMPLETING; a requeue would undo an scancel.
slurm_says "JobState=RUNNING" || stay "Slurm itself ends this job"
[ "$${SLURM_RESTART_COUNT:-0}" -lt "$$requeues" ] || stay "stopped after $$requeues requeues, which is all it may have"
[ "$$preempted" ] || [ "$$(reached)" != "$$before" ] || stay "stopped no further than it began"
echo "hyperopt: stopped; requeued" >&2
scontrol requeue "$$id" || stay "Slurm refuses to requeue this job"
exit "$$code"
""")

_ONE_RANK = """\
# The one task has all processors of the job; by itself srun would give it one of them.
srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}\""""

_RANKS = Template("""\
# One task for each rank, with its share of the node's processors; each sees all GPUs of its node, and takes its own.
cpus=$$(($${SLURM_CPUS_ON_NODE:-$per_node} / $per_node))
export OMP_NUM_THREADS="$${OMP_NUM_THREADS:-$$cpus}"
# Ranks that miss another end by themselves; srun ends those that have not done so $grace_s s later.
# --kill-on-bad-exit would end those that are about to exit with 75 too, and make 143 of it.
srun --ntasks=$num --nodes=$nodes --ntasks-per-node=$per_node --cpus-per-task="$$cpus" \\
    --kill-on-bad-exit=0 --wait=$grace_s""")
LOST_GRACE_S = 60

_SEVERAL = Template("""
case "$$SLURM_ARRAY_TASK_ID" in
$cases
esac""")

# The plain job id of one element of an array can be the id of the whole array.
_JOB_ID = '"$SLURM_JOB_ID"'
_ELEMENT_ID = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'


def render(
    job: Job,
    folder: JobFolder,
    request: Request,
    python: str,
    working_directory: Path,
    allow_import: Sequence[str] = (),
) -> str:
    """Returns the script that Slurm runs for a job.

    Args:
        job: the job, with its elements.
        folder: where they are frozen and will run.
        request: what each of them is to have.
        python: the interpreter that runs them.
        working_directory: where they run; data sets and own modules are found from there.
        allow_import: the patterns of `--allow-import`.

    Raises:
        UsageError: a path holds characters that a script can't.
    """
    root = folder.root.absolute()
    for path in (root, working_directory, Path(python)):
        # Slurm reads a backslash in the name of the output file as a command to leave its patterns alone.
        if not str(path).isprintable() or "\\" in str(path):
            raise UsageError(
                f"{str(path)!r} has a line break, another control character or a backslash; use another path"
            )
    elements = f"element={shlex.quote(job.elements[0].name)}"
    if job.is_array:
        cases = [f"    {element.task}) element={shlex.quote(element.name)} ;;" for element in job.elements]
        elements = _SEVERAL.substitute(cases="\n".join(cases))
    num, nodes, srun = request.num_ranks, request.num_nodes, _ONE_RANK
    if num > 1:
        srun = _RANKS.substitute(num=num, nodes=nodes, per_node=num // nodes, grace_s=LOST_GRACE_S)
    return _SCRIPT.substitute(
        directives="\n".join(_directives(job, JobFolder(root), request, working_directory)),
        job=shlex.quote(str(root)),
        python=shlex.quote(python),
        requeues=request.requeues,
        elements=elements,
        srun=srun,
        arguments="".join(f" \\\n    --allow-import {shlex.quote(pattern)}" for pattern in allow_import),
        job_id=_ELEMENT_ID if job.is_array else _JOB_ID,
    )


def _directives(job: Job, folder: JobFolder, request: Request, working_directory: Path) -> Iterator[str]:
    def line(option: str, value: object) -> str:
        text = str(value)
        if not text or not all(character.isalnum() or character in "_./,:@=+%-" for character in text):
            # the quotes of such a line are not quite those of the shell
            text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"#SBATCH --{option}={text}"

    yield line("job-name", folder_name(job.name))
    if job.is_array:
        yield line("array", f"0-{len(job.elements) - 1}")
    yield line("chdir", working_directory)
    # A percent sign begins one of Slurm's patterns; %a is the index of the element.
    output = str(folder.outputs).replace("%", "%%") + ("/%a.txt" if job.is_array else "/0.txt")
    yield line("output", output)
    yield line("open-mode", "append")
    # Ranks are spread evenly, over no more nodes than were asked for.
    num, nodes, gpus = request.num_ranks, request.num_nodes, request.gpus
    sizes = {"ntasks": num, "gpus": gpus, "nodes": 1 if num > 1 else request.nodes}
    if nodes > 1:
        gpus_per_node = gpus // nodes if gpus else None
        sizes = {"ntasks": num, "ntasks-per-node": num // nodes, "gpus-per-node": gpus_per_node, "nodes": nodes}
    yield from (line(option, value) for option, value in sizes.items() if value)
    for option in ("time", "partition", "account"):
        if getattr(request, option):
            yield line(option, getattr(request, option))
    yield line("signal", f"TERM@{request.grace_s}")
    yield "#SBATCH --requeue"
    yield from (f"#SBATCH {text.strip()}" for text in request.sbatch_lines)
