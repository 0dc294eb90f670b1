"""`hyperopt doctor`: what this machine has."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from hyperopt_cli.registry import DATA_SETS

PACKAGES = ("hyperopt-cli", "torch", "torchvision", "pydantic", "typer", "rich", "tensorboard", "matplotlib")


def doctor() -> None:
    """Show versions, devices, and what is missing."""
    import torch

    lines = [("python", sys.version_info >= (3, 11), sys.version.split()[0])]
    for package in PACKAGES:
        try:
            lines.append((package, True, version(package)))
        except PackageNotFoundError:
            lines.append((package, False, "not installed: pip install hyperopt-cli brings it"))

    lines.append(("cpu", True, f"{torch.get_num_threads()} threads"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            lines.append((f"cuda:{index}", True, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    else:
        lines.append(("cuda", False, "no GPU that this build of torch can use; everything runs on the CPU"))

    board = shutil.which("tensorboard") or (Path(sys.executable).parent / "tensorboard")
    lines.append(("tensorboard command", Path(board).exists(), "shows the curves of a run"))

    root = Path("~/.cache/hyperopt").expanduser()
    lines.append(("digits", True, "inside the package"))
    for name, entry in DATA_SETS.items():
        if entry.folder is None:
            continue
        found = (root / entry.folder).is_dir()
        fetch = f"python -c 'from hyperopt_cli import data; data.{name}(download=True)'"
        text = "in ~/.cache/hyperopt" if found else f"point dataset.root at it, or fetch it: {fetch}"
        lines.append((name, found, text))

    width = max(len(name) for name, _, _ in lines)
    for name, good, text in lines:
        typer.echo(f"{'ok     ' if good else 'missing'}  {name:{width}}  {text}")
    if not all(good for name, good, _ in lines if name in PACKAGES):
        raise typer.Exit(1)
