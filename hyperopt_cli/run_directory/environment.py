"""What a run ran on: the content of environment.json.

Environment variables stay out of it, because they hold secrets, and so do absolute paths, because they name people
and machines and mean nothing elsewhere.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def environment(device: str = "cpu", arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the versions, hardware, commit and command line of this process.

    Args:
        device: where the run computes, as torch names it.
        arguments: the command line; None for this process's own.
    """
    return {
        "python": platform.python_version(),
        "hyperopt": _version("hyperopt-cli"),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device(device)),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": command_line(sys.argv if arguments is None else arguments),
    }


def command_line(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without absolute paths: below the working directory relative ones, else the last part.

    >>> command_line(["/usr/bin/hyperopt", "run", "digits", "dataset.root=/data/mnist", "lr=0.1"])
    ['hyperopt', 'run', 'digits', 'dataset.root=mnist', 'lr=0.1']
    """
    line = []
    for argument in arguments:
        key, equals, value = argument.rpartition("=")
        path = Path(value)
        if path.is_absolute():
            here = Path.cwd()
            value = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
        line.append(key + equals + value)
    return line


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """Returns the name of the GPU's or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git(*arguments: str) -> str | None:
    """Returns what git says about the working directory; None without git or outside of a repository."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
