"""`hyperopt submit`: a run, or an array of runs, on a cluster."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperopt_cli.cli import completion
from hyperopt_cli.cli.again import again
from hyperopt_cli.cli.options import (
    AllowImport,
    Device,
    ModeName,
    Out,
    Overrides,
    RecipeName,
    load_recipe,
    with_options,
)
from hyperopt_cli.cluster.request import DEFAULT_GRACE_S, DEFAULT_REQUEUES, Request
from hyperopt_cli.errors import HyperoptError, Remedy, UsageError

if TYPE_CHECKING:
    from hyperopt_cli.cluster.array import Element
    from hyperopt_cli.cluster.job import Job, JobFolder
    from hyperopt_cli.recipe import Recipe

MAX_TOLD = 10
_ARRAY_HELP = (
    "One run for each value of a key, e.g. seed=0..9 (ranges have both ends) or mode=forward,reverse; given several "
    "times, one run for each combination."
)
_LINE_HELP = "More options of sbatch, e.g. '--constraint=a100'; may be given several times."
_GRACE_HELP = "How many seconds before its time limit a run is told to save and stop."
_REQUEUES_HELP = "How often a run that was stopped and has saved is run again, if it had got further."
_TIME_HELP = "Time limit, as sbatch takes it: minutes, H:MM:SS, D-HH ..."
_NPROC_HELP = "Processes that share each run (shard: in the recipe); one for each GPU or node by default."
_TO_HELP = "Where it runs; kubernetes takes --dry-run, for kubectl apply."
_CLAIM_HELP = "kubernetes: the PersistentVolumeClaim that keeps the runs."


def submit(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each run.", metavar="N")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes of each run.", metavar="N")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help=_NPROC_HELP, metavar="N")] = None,
    time: Annotated[str | None, typer.Option(help=_TIME_HELP, metavar="TIME")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.", metavar="NAME")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's account.", metavar="NAME")] = None,
    array: Annotated[
        list[str] | None, typer.Option(help=_ARRAY_HELP, metavar="KEY=VALUES", autocompletion=completion.overrides)
    ] = None,
    sbatch_line: Annotated[list[str] | None, typer.Option(help=_LINE_HELP, metavar="OPTIONS")] = None,
    grace: Annotated[int, typer.Option(min=1, max=65535, help=_GRACE_HELP, metavar="SECONDS")] = DEFAULT_GRACE_S,
    requeues: Annotated[int, typer.Option(min=0, max=10_000, help=_REQUEUES_HELP, metavar="N")] = DEFAULT_REQUEUES,
    out: Out = None,
    mode: ModeName = None,
    device: Device = None,
    to: Annotated[
        str, typer.Option(help=_TO_HELP, metavar="slurm|kubernetes", autocompletion=lambda: ["slurm", "kubernetes"])
    ] = "slurm",
    image: Annotated[str | None, typer.Option(help="kubernetes: the image that has hyperopt.", metavar="IMAGE")] = None,
    claim: Annotated[str | None, typer.Option(help=_CLAIM_HELP, metavar="NAME")] = None,
    no_try: Annotated[bool, typer.Option("--no-try", help="Take no inner step of each run here first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    allow_import: AllowImport = None,
) -> None:
    """Run a recipe on a cluster, once or for every combination of an array; it resumes by itself when it is stopped.

    One inner step of every run is taken here first, on the CPU (of those that differ in the seed alone, of one). The
    recipe is frozen: what is submitted is what runs, whatever happens to the file.

    Example: hyperopt submit mnist_lr steps=1000 --gpus 1 --time 2:00:00 --array seed=0..9 --array mode=forward,reverse
    """
    request = Request(gpus, nodes, time, partition, account, grace, requeues, tuple(sbatch_line or ()), nproc)
    if to == "kubernetes":
        _check_kubernetes(request, image, claim, out, json, dry_run)
    elif to != "slurm":
        raise UsageError(f"--to: got {to!r}; must be slurm or kubernetes")
    elif image is not None or claim is not None:
        raise UsageError("--image and --claim are for --to kubernetes; leave them out")

    from hyperopt_cli.cluster.array import elements
    from hyperopt_cli.cluster.job import Job, new_folder
    from hyperopt_cli.recipe.load import find

    name = find(recipe).stem
    folder = new_folder(name, out)
    job = Job.new(name, requeues, elements(*(array or ())))
    changes = with_options(overrides, mode=mode, device=device)
    loaded = _loaded(recipe, changes, job.elements, allow_import, request.num_ranks)
    if not no_try:
        _try(loaded, job.elements, allow_import)
    recipes = [(element, each.to_yaml()) for element, each in zip(job.elements, loaded, strict=True)]
    if to == "kubernetes":
        from hyperopt_cli.cluster import kubernetes

        assert image is not None
        assert claim is not None
        typer.echo(
            kubernetes.render(job, folder.root.name, recipes, request, image, claim, allow_import or ()), nl=False
        )
        return

    from hyperopt_cli.cluster import sbatch

    script = sbatch.render(job, folder, request, sys.executable, Path.cwd(), allow_import or ())
    if dry_run:
        typer.echo(script, nl=False)
        return
    _submit(job, folder, script, recipes, json)


def _submit(job: "Job", folder: "JobFolder", script: str, recipes: list[tuple["Element", str]], json: bool) -> None:
    from hyperopt_cli.cluster.submit import submit
    from hyperopt_cli.run_directory.json_files import to_text

    job, expected = submit(job, folder, script, recipes)
    if json:
        names = [element.name for element in job.elements]
        typer.echo(to_text({"job_id": job.job_id, "directory": str(folder.root), "elements": names}))
        return
    runs = "1 run" if len(job.elements) == 1 else f"{len(job.elements)} runs"
    typer.echo(f"submitted job {job.job_id}, {runs}; everything is in {folder.root}")
    typer.echo(f"Slurm expects: {expected}")
    typer.echo(
        f"see it:        hyperopt status {job.job_id}; hyperopt logs -f {job.job_id}; hyperopt cancel {job.job_id}"
    )


def _loaded(
    recipe: str,
    overrides: list[str],
    elements: tuple["Element", ...],
    allow_import: list[str] | None,
    num_ranks: int,
) -> list["Recipe"]:
    """Returns every element's recipe, validated."""
    from hyperopt_cli.instantiate import check
    from hyperopt_cli.recipe.sharding import shard_of

    recipes = []
    varied = {override.partition("=")[0] for element in elements for override in element.overrides}
    for override in overrides:
        key = override.partition("=")[0]
        if key in varied:
            raise UsageError(f"{override}: --array varies {key} too; give one of them")
    for element in elements:
        loaded = load_recipe(recipe, [*overrides, *element.overrides], allow_import)
        check(loaded, allow_import or ())
        shard_of(loaded, num_ranks)
        recipes.append(loaded)
    return recipes


def _try(recipes: list["Recipe"], elements: tuple["Element", ...], allow_import: list[str] | None) -> None:
    """Takes one inner step of each distinct recipe, and says of all of them what went wrong."""
    from hyperopt_cli.instantiate.trial import distinct, try_step

    failed = []
    for n in distinct(recipes):
        try:
            try_step(recipes[n], allow_import or ())
        except HyperoptError as error:
            failed.append(f"{elements[n].name}: {error}" if len(elements) > 1 else str(error))
    if failed:
        failures = "\n".join(
            [*failed[:MAX_TOLD], *([f"and {len(failed) - MAX_TOLD} more"] if len(failed) > MAX_TOLD else [])]
        )
        raise UsageError(f"tried here on the CPU before it waits in a queue:\n{failures}").remedied(
            Remedy("to submit it without trying it here", ("--no-try",))
        )


def _check_kubernetes(
    request: Request, image: str | None, claim: str | None, out: Path | None, json: bool, dry_run: bool
) -> None:
    given: dict[str, object] = {
        "--partition": request.partition,
        "--account": request.account,
    }
    given |= {"--sbatch-line": request.sbatch_lines, "--out": out, "--json": json}
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} is not for --to kubernetes; leave it out")
    if image is None or claim is None:
        raise UsageError(
            "--to kubernetes needs --image IMAGE, which has hyperopt, and --claim NAME, the PersistentVolumeClaim that "
            "keeps checkpoints when a pod goes"
        )
    if not dry_run:
        raise UsageError(
            "--to kubernetes prints a manifest and submits nothing; add --dry-run, and pipe it into kubectl: "
            f"{again('--dry-run')} | kubectl apply -f -"
        )
