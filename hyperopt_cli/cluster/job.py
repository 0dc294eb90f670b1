"""The folder of a job: its script, its frozen recipes, the output of its elements, and a run for each.

    runs/<recipe>-<time>-<id>/
        job.json            what was submitted: the scheduler's number, and the elements
        job.sbatch          the script
        recipes/NAME.yaml   each element's recipe with defaults and overrides filled in: later changes don't reach it
        output/             what each element printed, by its index: 0.txt, 1.txt, ...
        NAME/               each element's run directory
        cancelled/NAME      there once `hyperopt cancel` was called on it: it is not run again

A job without `--array` has one element, called `run`.
"""

import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from hyperopt_cli.cluster.array import Element
from hyperopt_cli.errors import Remedy, UsageError
from hyperopt_cli.run_directory.directory import RunDirectory
from hyperopt_cli.run_directory.json_files import read_json, write_json, write_text
from hyperopt_cli.run_directory.naming import folder_name

VERSION = 1
IN_ANOTHER = Remedy("to make one below runs/", drop=("--out",))


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job, with every path in it.

    Attributes:
        root: the folder itself.
    """

    root: Path

    @property
    def description(self) -> Path:
        """The path of job.json, which says what was submitted."""
        return self.root / "job.json"

    @property
    def script(self) -> Path:
        """The path of the script that sbatch is given."""
        return self.root / "job.sbatch"

    @property
    def recipes(self) -> Path:
        """The path of the folder that holds the frozen recipes."""
        return self.root / "recipes"

    @property
    def outputs(self) -> Path:
        """The path of the folder that holds what the elements printed."""
        return self.root / "output"

    def recipe(self, element: Element) -> Path:
        """Returns the path of an element's frozen recipe."""
        return self.recipes / f"{element.name}.yaml"

    def output(self, element: Element) -> Path:
        """Returns the path of the file that holds what an element printed."""
        return self.outputs / f"{element.task}.txt"

    def cancelled(self, element: Element) -> Path:
        """Returns the path of a mark that is there once the element was cancelled."""
        return self.root / "cancelled" / element.name

    def run(self, element: Element) -> RunDirectory:
        """Returns the run directory of an element, which is there once it has started."""
        return RunDirectory(self.root / element.name)

    def create(self, script: str, recipes: Sequence[tuple[Element, str]]) -> None:
        """Makes the folder with the script and the frozen recipes.

        Raises:
            UsageError: the folder is there already, or can't be made.
        """
        try:
            self.root.mkdir(parents=True)
            self.recipes.mkdir()
            self.outputs.mkdir()
            write_text(self.script, script)
            for element, text in recipes:
                write_text(self.recipe(element), text)
        except FileExistsError:
            raise UsageError(f"{self.root} exists; a job needs a new folder: give another --out").remedied(
                IN_ANOTHER
            ) from None
        except OSError as error:
            raise UsageError(
                f"{self.root} can't be made ({error.strerror}); give a writable place with --out"
            ) from None


class Job(NamedTuple):
    """A job, as job.json describes it.

    Attributes:
        name: the recipe's name.
        job_id: the scheduler's number; None until it was given.
        submitted: when, in UTC.
        requeues: how often an element may be run again.
        elements: its runs, by index.
    """

    name: str
    job_id: str | None
    submitted: str
    requeues: int
    elements: tuple[Element, ...]

    @classmethod
    def new(cls, name: str, requeues: int, elements: Sequence[Element]) -> Self:
        """Returns a job that is about to be submitted and has no number yet."""
        return cls(name, None, datetime.now(UTC).isoformat(timespec="seconds"), requeues, tuple(elements))

    @property
    def is_array(self) -> bool:
        """Whether it was given as an array, though it be of one element."""
        return any(element.overrides for element in self.elements)

    def id_of(self, element: Element) -> str:
        """Returns Slurm's name for an element: `12_3`, or `12` without an array; it is empty before submission."""
        if self.job_id is None:
            return ""
        return f"{self.job_id}_{element.task}" if self.is_array else self.job_id

    def write(self, folder: JobFolder) -> None:
        """Writes the job into job.json of its folder."""
        content = {"version": VERSION, "scheduler": "slurm", **self._asdict()}
        write_json(folder.description, {**content, "elements": [element._asdict() for element in self.elements]})


def read_job(folder: JobFolder) -> Job:
    """Returns the job that a folder holds.

    Raises:
        UsageError: the folder holds none, or job.json is damaged or of another version.
    """
    if not folder.description.is_file():
        raise UsageError(f"{folder.root} has no job.json; give the folder of a job that hyperopt submit made")
    content = read_json(folder.description)
    if content.get("version") != VERSION:
        raise UsageError(
            f"{folder.description} is of version {content.get('version')!r}; this hyperopt reads version {VERSION}: "
            "use the one that submitted the job"
        )
    try:
        elements = [Element(each["task"], each["name"], tuple(each["overrides"])) for each in content["elements"]]
        for element in elements:
            if not isinstance(element.task, int) or re.fullmatch(r"(?!\.)[^/\0]+", element.name) is None:
                raise ValueError(f"no element: {element}")
        job = Job(**{key: content[key] for key in Job._fields if key != "elements"}, elements=tuple(elements))
        if job.job_id is not None and re.fullmatch(r"\d+", job.job_id, re.ASCII) is None:
            raise ValueError(f"no number of a job: {job.job_id!r}")  # it is handed to Slurm's programs
        return job
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder.description} is damaged ({error}); restore it from a copy") from None


class Selection(NamedTuple):
    """What a person has named: a job, and which of its elements.

    Attributes:
        folder: where it lies.
        job: what job.json says.
        elements: all, or the one that was named.
    """

    folder: JobFolder
    job: Job
    elements: tuple[Element, ...]


def select(given: str, below: Path = Path("runs")) -> Selection:
    """Returns the job or element that is given by its folder, or by Slurm's number for it (`12`, `12_3`).

    Raises:
        UsageError: there is no such job or element.
    """
    path = Path(given)
    if (path / "job.json").is_file():
        return _selected(JobFolder(path))
    if (path.parent / "job.json").is_file():
        return _selected(JobFolder(path.parent), name=path.name)
    number, _, task = given.partition("_")
    if not path.exists() and number.isdecimal() and (task.isdecimal() or number == given):
        for folder in reversed(find_jobs(below)):
            job_id = None
            with suppress(UsageError):  # a damaged one is not the one that was asked for
                job_id = read_job(folder).job_id
            if job_id == number:
                return _selected(folder, task=int(task) if task else None)
        raise UsageError(f"no job below {below}/ has the number {number}; give the folder of the job")
    what = "holds no job.json" if path.exists() else "does not exist"
    raise UsageError(f"{given} {what}; give the folder of a job, such as {below}/<recipe>-<time>-<id>, or its number")


def _selected(folder: JobFolder, name: str | None = None, task: int | None = None) -> Selection:
    job = read_job(folder)
    if name is None and task is None:
        return Selection(folder, job, job.elements)
    chosen = tuple(element for element in job.elements if element.name == name or element.task == task)
    if not chosen:
        names = [element.name for element in job.elements]
        some = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise UsageError(f"the job in {folder.root} has no element {name if task is None else task}; it has {some}")
    return Selection(folder, job, chosen)


def find_jobs(below: Path = Path("runs")) -> list[JobFolder]:
    """Returns the jobs directly below a folder, oldest first."""
    return [JobFolder(path.parent) for path in sorted(below.glob("*/job.json"), key=lambda path: path.stat().st_mtime)]


def new_folder(name: str, out: Path | None) -> JobFolder:
    """Returns a folder that is still to be made: `out`, or `runs/<name>-<time>-<id>` in the working directory.

    Raises:
        UsageError: `out` is there already.
    """
    if out is not None and (out.exists() or out.is_symlink()):
        raise UsageError(f"{out} exists; a job needs a new folder: give another --out").remedied(IN_ANOTHER)
    unique = f"{folder_name(name)}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return JobFolder(Path("runs") / unique if out is None else out)
