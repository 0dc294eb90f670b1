"""The manifest for Kubernetes: every field is one that the API has, and the policy does what Slurm's script does."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperopt_cli.cluster import kubernetes
from hyperopt_cli.cluster.array import elements
from hyperopt_cli.cluster.job import Job
from hyperopt_cli.cluster.request import Request
from hyperopt_cli.errors import UsageError

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

# The part of the API's reference that a manifest may use (batch/v1 Job, v1 ConfigMap, Kubernetes 1.33): a type, a
# [list of a type], a {mapping}, or a set of allowed words. A name that is not here is a mistake.
META = {"name": str, "labels": {str: str}}
CODES = {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]}
CONDITION = {"type": str, "status": {"True", "False", "Unknown"}}
RULE = {"action": {"FailJob", "FailIndex", "Ignore", "Count"}, "onExitCodes": CODES, "onPodConditions": [CONDITION]}
VOLUME = {"name": str, "configMap": {"name": str}, "persistentVolumeClaim": {"claimName": str, "readOnly": bool}}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"apiVersion": str, "fieldPath": str}}}],
    "resources": {"limits": {str: str}, "requests": {str: str}},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
POD = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "terminationGracePeriodSeconds": int,
    "containers": [CONTAINER],
    "volumes": [VOLUME],
}
SPEC = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "backoffLimitPerIndex": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "completions": int,
    "parallelism": int,
    "podFailurePolicy": {"rules": [RULE]},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "template": {"metadata": META, "spec": POD},
}
KINDS = {
    "Job": {"apiVersion": {"batch/v1"}, "kind": {"Job"}, "metadata": META, "spec": SPEC},
    "ConfigMap": {
        "apiVersion": {"v1"},
        "kind": {"ConfigMap"},
        "metadata": META,
        "immutable": bool,
        "data": {str: str},
    },
}


def misfits(value: Any, schema: Any, path: str = "") -> list[str]:
    """Where `value` is not what `schema` says."""
    if isinstance(schema, set):
        return [] if value in schema else [f"{path}: {value!r}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [found for n, item in enumerate(value) for found in misfits(item, schema[0], f"{path}[{n}]")]
    if not isinstance(schema, dict):
        return [] if type(value) is schema else [f"{path}: {value!r} is no {schema.__name__}"]
    if not isinstance(value, dict):
        return [f"{path}: no mapping"]
    found = []
    for key, item in value.items():
        if key not in schema and str not in schema:
            found.append(f"{path}.{key}: unknown")
        else:
            found += misfits(item, schema.get(key, schema.get(str)), f"{path}.{key}")
    return found


def rendered(
    array=None, request=None, recipe="steps: 3\n", unique="recipe-1", claim="runs", allow_import=(), image="a/b"
):
    request = request or Request()
    job = Job.new("recipe", request.requeues, elements(*filter(None, [array])))
    recipes = [(element, f"# {element.name}\n{recipe}") for element in job.elements]
    return kubernetes.render(job, unique, recipes, request, image, claim, allow_import)


def documents(*arguments, **options):
    config, job = yaml.safe_load_all(rendered(*arguments, **options))
    return config, job


def rules(job):
    return job["spec"]["podFailurePolicy"]["rules"]


def pod(job):
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("array", [None, "seed=0..4"])
@pytest.mark.parametrize("request_", [Request(), Request(gpus=1, time="2:00:00", grace_s=60, requeues=3)])
def test_every_field_is_one_of_the_api(array, request_):
    for document in documents(array, request_, allow_import=["mine.*"]):
        assert misfits(document, KINDS[document["kind"]]) == []
        assert LABEL.fullmatch(document["metadata"]["name"])


def test_the_check_of_fields_bites():
    _, job = documents()
    job["spec"]["podFailurePolicies"] = {}
    job["spec"]["backoffLimit"] = "3"
    rules(job)[0]["action"] = "Retry"
    assert len(misfits(job, KINDS["Job"])) == 3


def test_75_and_evictions_are_replaced_uncounted_and_2_to_4_fail():
    _, job = documents(request=Request(requeues=7))
    saved, final, disrupted = rules(job)
    assert saved == {"action": "Ignore", "onExitCodes": {"containerName": "hyperopt", "operator": "In", "values": [75]}}
    assert final["action"] == "FailJob"
    assert final["onExitCodes"] == {"containerName": "hyperopt", "operator": "In", "values": [2, 3, 4]}
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert job["spec"]["backoffLimit"] == 7
    assert {container["name"] for container in pod(job)["containers"]} == {"hyperopt"}


def test_what_the_api_demands_of_a_failure_policy_holds():
    for array in (None, "seed=0..1"):
        _, job = documents(array)
        assert pod(job)["restartPolicy"] == "Never"
        assert job["spec"]["podReplacementPolicy"] == "Failed"  # one process at a time in a run directory
        for rule in rules(job):
            assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
            values = rule.get("onExitCodes", {}).get("values", [1])
            assert values == sorted(set(values))
            assert 0 not in values


def test_an_array_is_an_indexed_job_whose_elements_fail_alone():
    config, job = documents("seed=0..4", Request(requeues=7))
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 5, 5)
    assert spec["backoffLimitPerIndex"] == 7
    assert "backoffLimit" not in spec
    assert [rule["action"] for rule in rules(job)] == ["Ignore", "FailIndex", "Ignore"]
    assert list(config["data"]) == [f"{n}.yaml" for n in range(5)]
    assert config["data"]["3.yaml"].startswith("# seed=3\n")
    (container,) = pod(job)["containers"]
    (index,) = container["env"]
    assert index["name"] == "INDEX"
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
    assert container["args"][:4] == ["run", "/recipes/$(INDEX).yaml", "--out", "/runs/recipe-1/$(INDEX)"]


def test_what_the_container_needs_is_mounted():
    config, job = documents(claim="my-claim")
    volumes = {volume.pop("name"): volume for volume in pod(job)["volumes"]}
    assert volumes["recipes"] == {"configMap": {"name": config["metadata"]["name"]}}
    assert volumes["runs"] == {"persistentVolumeClaim": {"claimName": "my-claim"}}
    (container,) = pod(job)["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {"/recipes": "recipes", "/runs": "runs"}
    recipe, out = container["args"][1], container["args"][3]
    assert Path(recipe).parts[1] == "recipes"
    assert Path(recipe).name in config["data"]
    assert Path(out).parts[1] == "runs"
    assert container["args"][4:6] == ["--resume", "auto"]
    assert container["image"] == "a/b"


def test_the_ranks_of_a_run_are_processes_of_one_pod():
    _, job = documents(request=Request(gpus=4))
    (container,) = pod(job)["containers"]
    assert container["args"][-2:] == ["--nproc", "4"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "4"}}
    _, job = documents(request=Request(nproc=3), allow_import=["mine.*"])
    assert pod(job)["containers"][0]["args"][-4:] == ["--nproc", "3", "--allow-import", "mine.*"]
    _, job = documents(request=Request(nproc=1, nodes=1))
    assert "--nproc" not in pod(job)["containers"][0]["args"]


def test_a_pod_has_one_node():
    with pytest.raises(UsageError, match="--nodes 2: a run is one pod, and a pod lies on one node"):
        rendered(request=Request(nodes=2))


def test_what_was_asked_for_is_there_and_nothing_else():
    _, job = documents(request=Request(gpus=1, time="2:00:00", grace_s=60))
    assert job["spec"]["activeDeadlineSeconds"] == 7200
    assert pod(job)["terminationGracePeriodSeconds"] == 60
    assert pod(job)["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    _, job = documents()
    assert "activeDeadlineSeconds" not in job["spec"]
    assert "resources" not in pod(job)["containers"][0]


@pytest.mark.parametrize("recipe", ['a: "$(x)"\n', "a: |\n  b\n\n  c\n", "a: 'é'\n", 'a: "--- x"\n', "a: '#'\n"])
def test_recipes_come_through_to_the_letter(recipe):
    config, _ = documents(recipe=recipe)
    assert config["data"]["0.yaml"] == f"# run\n{recipe}"


def test_dollars_of_arguments_are_not_filled_in_by_kubernetes():
    _, job = documents(allow_import=["$(HOSTNAME).*"])
    assert pod(job)["containers"][0]["args"][-2:] == ["--allow-import", "$$(HOSTNAME).*"]


@pytest.mark.parametrize("unique", ["My_Recipe.v2-2026", "x" * 90 + "-20260101-101010-abcdef", "-a-", "$(x)\n: y"])
def test_names_of_objects_leave_room_for_those_of_pods(unique):
    for document in documents(unique=unique):
        name = document["metadata"]["name"]
        assert LABEL.fullmatch(name)
        assert len(name) <= 63 - 17
    assert name.endswith("abcdef") == unique.endswith("abcdef")


@pytest.mark.parametrize("claim", ["", "A", "a b", "a\nb: c", "-a", "a..b", "x" * 254])
def test_a_claim_that_kubernetes_would_refuse_is_refused(claim):
    with pytest.raises(UsageError, match="--claim"):
        rendered(claim=claim)


@pytest.mark.parametrize("image", ["", "a b", "a\nb"])
def test_an_image_that_is_none_is_refused(image):
    with pytest.raises(UsageError, match="--image"):
        rendered(image=image)


def test_recipes_that_no_config_map_holds_are_refused():
    with pytest.raises(UsageError, match="a ConfigMap at most"):
        rendered("seed=0..9", recipe=f"a: {'x' * 110_000}\n")
