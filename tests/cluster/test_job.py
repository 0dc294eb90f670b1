"""The folder of a job, and finding one."""

import json
import re

import pytest

from hyperopt_cli.cluster.array import elements
from hyperopt_cli.cluster.job import Job, JobFolder, find_jobs, new_folder, read_job, select
from hyperopt_cli.errors import UsageError


def made(root, array="seed=0..2", job_id="12"):
    folder, job = JobFolder(root), Job.new("recipe", 20, elements(*filter(None, [array])))
    folder.create("#!/bin/sh\n", [(element, f"# {element.name}\n") for element in job.elements])
    job = job._replace(job_id=job_id)
    job.write(folder)
    return folder, job


def test_what_is_written_is_read_again(tmp_path):
    folder, job = made(tmp_path / "job")
    assert read_job(folder) == job


def test_the_folder_holds_what_its_docstring_says(tmp_path):
    folder, _ = made(tmp_path / "job")
    assert {path.name for path in folder.root.iterdir()} == {"job.json", "job.sbatch", "recipes", "output"}
    assert {path.name for path in folder.recipes.iterdir()} == {f"seed={n}.yaml" for n in range(3)}
    assert (folder.recipes / "seed=1.yaml").read_text() == "# seed=1\n"


def test_job_json_has_no_absolute_path(tmp_path):
    folder, _ = made(tmp_path / "job")
    assert str(tmp_path) not in folder.description.read_text()


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "job").mkdir()
    for out in (tmp_path / "job",):
        with pytest.raises(UsageError, match="exists; a job needs a new folder"):
            new_folder("recipe", out)
        with pytest.raises(UsageError, match="exists; a job needs a new folder"):
            JobFolder(out).create("", [])
    assert not list((tmp_path / "job").iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be made"):
        JobFolder(tmp_path / "file" / "job").create("", [])


def test_folders_are_named_after_the_recipe_and_differ():
    one, two = new_folder("a $(b)", None), new_folder("a $(b)", None)
    assert one != two
    assert re.fullmatch(r"runs/a-b-\d{8}-\d{6}-[0-9a-f]{6}", str(one.root))


@pytest.mark.parametrize("array", [None, "seed=0..2"])
def test_jobs_and_elements_are_found_by_folder_and_by_number(tmp_path, monkeypatch, array):
    monkeypatch.chdir(tmp_path)
    folder, job = made(tmp_path / "runs" / "recipe-1", array)
    made(tmp_path / "runs" / "recipe-2", array, job_id="13")
    for given in ("runs/recipe-1", "12", str(folder.root)):
        assert select(given).job == job
        assert select(given).elements == job.elements
    last = job.elements[-1]
    folder.run(last).root.mkdir()
    for given in (f"runs/recipe-1/{last.name}", f"12_{last.task}"):
        assert select(given).elements == (last,)
    assert job.id_of(last) == ("12" if array is None else "12_2")
    assert [each.root.name for each in find_jobs()] == ["recipe-1", "recipe-2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("99", "no job below runs/ has the number 99"),
        ("nowhere", "nowhere does not exist"),
        ("plain", "plain holds no job.json"),
        ("12_7", "has no element 7; it has seed=0, seed=1, seed=2"),
        ("runs/job/seed=9", "has no element seed=9"),
    ],
)
def test_what_is_no_job_is_told(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "runs" / "job")
    (tmp_path / "plain").mkdir()
    with pytest.raises(UsageError, match=re.escape(message)):
        select(given)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"elements": [{"task": 0, "name": "../../etc", "overrides": []}]},
        {"elements": [{"task": 0, "name": "..", "overrides": []}]},
        {"elements": [{"task": "x", "name": "a", "overrides": []}]},
        {"elements": [{}]},
        {"job_id": "--user=me"},
        {"job_id": 12},
        {"elements": None},
    ],
)
def test_a_damaged_job_json_is_told_and_leads_nowhere_else(tmp_path, change):
    folder, _ = made(tmp_path / "job")
    content = json.loads(folder.description.read_text())
    folder.description.write_text(json.dumps({**content, **change}))
    with pytest.raises(UsageError, match=r"job\.json is (damaged|of version)"):
        read_job(folder)
