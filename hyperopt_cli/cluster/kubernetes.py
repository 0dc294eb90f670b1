"""A Kubernetes Job for the same runs, as a manifest for `kubectl apply`.

A pod that exits with 75 has saved, and a pod that was evicted or preempted may have: both are replaced without being
counted. Exit codes 2 to 4 would be the same again, so they fail the run at once. Anything else (a node that dies, a
container killed for memory) is tried again `backoffLimit` times, and goes on from its last checkpoint.

An array is an indexed job: pod n runs recipe n, and one that fails does not end the others.

https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy (Kubernetes 1.31; arrays 1.33)
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from textwrap import indent
from typing import Any

from hyperopt_cli.cluster.array import Element
from hyperopt_cli.cluster.job import Job
from hyperopt_cli.cluster.request import Request
from hyperopt_cli.errors import UsageError
from hyperopt_cli.recipe.document import dump

# A ConfigMap holds at most 1 MiB, names included.
MAX_CONFIG_BYTES = 1_000_000
SAVED, FINAL = 75, [2, 3, 4]
RECIPES, RUNS = PurePosixPath("/recipes"), PurePosixPath("/runs")

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def render(
    job: Job,
    unique: str,
    recipes: Sequence[tuple[Element, str]],
    request: Request,
    image: str,
    claim: str,
    allow_import: Sequence[str] = (),
) -> str:
    """Returns the manifest: a ConfigMap with the frozen recipes, and the Job.

    Args:
        job: the job, with its elements.
        unique: the name of the job's folder, from which the objects have their names.
        recipes: the text of each element's recipe.
        request: what each run is to have; `time` bounds the whole job.
        image: the container image, which has Python and hyperopt.
        claim: the name of the PersistentVolumeClaim that keeps the runs.
        allow_import: the patterns of `--allow-import`.

    Raises:
        UsageError: the recipes together are too long, Kubernetes does not take a name, or several nodes are asked
            for.
    """
    if request.num_nodes > 1:
        raise UsageError(
            f"--nodes {request.nodes}: a run is one pod, and a pod lies on one node; leave it out, and give --gpus or "
            "--nproc as one node has them"
        )
    if not image or not image.isprintable() or " " in image:
        raise UsageError(
            f"--image: got {image!r}; give the name of an image, such as registry.example.org/me/hyperopt:1"
        )
    if len(claim) > 253 or not all(_LABEL.fullmatch(part) for part in claim.split(".")):
        raise UsageError(f"--claim: got {claim!r}; the name of a PersistentVolumeClaim has a-z, 0-9, - and . only")
    size = sum(len(text.encode()) for _, text in recipes)
    if size > MAX_CONFIG_BYTES:
        raise UsageError(
            f"the recipes have {size} bytes together, a ConfigMap at most {MAX_CONFIG_BYTES}: submit parts"
        )
    # Pods add up to 17 characters to the name, and may have 63.
    plain = re.sub(r"[^a-z0-9]+", "-", unique.lower()).strip("-")
    name = f"{plain[:19]}-{plain[-22:]}" if len(plain) > 42 else plain
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "immutable": True}
    # As literal blocks, which can be read.
    data = "".join(f"  {element.task}.yaml: |\n{indent(text, '    ')}" for element, text in recipes)
    container = _container(job, name, request, image, allow_import)
    return f"{dump(head)}data:\n{data}---\n{dump(_job(job, name, request, claim, container))}"


def _job(job: Job, name: str, request: Request, claim: str, container: dict[str, Any]) -> dict[str, Any]:
    pod = {
        "restartPolicy": "Never",  # a failure policy judges pods, not containers that are started again within one
        "terminationGracePeriodSeconds": request.grace_s,
        "containers": [container],
        "volumes": [
            {"name": "recipes", "configMap": {"name": name}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
        ],
    }
    deadline = {} if request.time_s is None else {"activeDeadlineSeconds": request.time_s}
    template = {"metadata": {"labels": {"app": "hyperopt"}}, "spec": pod}
    # The first rule that fits a failed pod decides whether it is tried again.
    rules = [
        {"action": "Ignore", "onExitCodes": _exit_codes([SAVED])},
        {"action": "FailIndex" if job.is_array else "FailJob", "onExitCodes": _exit_codes(FINAL)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    # A run directory takes one process at a time: the next pod waits until the last has ended.
    again = {"podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": rules}}
    completions: dict[str, Any] = {"backoffLimit": request.requeues}
    if job.is_array:
        num = len(job.elements)
        completions = {"completionMode": "Indexed", "completions": num, "parallelism": num}
        completions["backoffLimitPerIndex"] = request.requeues
    spec = {**completions, **deadline, **again, "template": template}
    labels = {"app": "hyperopt"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": spec}


def _exit_codes(values: list[int]) -> dict[str, Any]:
    return {"containerName": "hyperopt", "operator": "In", "values": values}


def _container(job: Job, name: str, request: Request, image: str, allow_import: Sequence[str]) -> dict[str, Any]:
    # Kubernetes fills in $(INDEX), and takes $$ for a dollar.
    recipe, run = ("$(INDEX)", "$(INDEX)") if job.is_array else ("0", job.elements[0].name)
    allowed = [word.replace("$", "$$") for pattern in allow_import for word in ("--allow-import", pattern)]
    out = ["--out", str(RUNS / name / run), "--resume", "auto"]
    ranks = ["--nproc", str(request.num_ranks)] if request.num_ranks > 1 else []
    container: dict[str, Any] = {
        "name": "hyperopt",
        "image": image,
        "command": ["python", "-P", "-m", "hyperopt_cli"],
        "args": ["run", str(RECIPES / f"{recipe}.yaml"), *out, *ranks, *allowed],
        "volumeMounts": [
            {"name": "recipes", "mountPath": str(RECIPES), "readOnly": True},
            {"name": "runs", "mountPath": str(RUNS)},
        ],
    }
    if job.is_array:
        container["env"] = [{"name": "INDEX", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}]
    if request.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(request.gpus)}}
    return container
