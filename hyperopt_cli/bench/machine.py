"""The machine of a benchmark: what a figure has to be read with."""

import os
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from hyperopt_cli import allocator
from hyperopt_cli.run_directory.environment import environment

# What sets the number of threads, how memory is taken and given back, and whether what was compiled before is found
# again; nothing else of the environment is read.
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES",
)
# how a GPU multiplies float32: as it stands ("none", "ieee"), or rounded to TF32
FLOAT32 = {"matrix products": "cuda.matmul.fp32_precision", "convolutions": "cudnn.conv.fp32_precision"}
KEPT = ("python", "hyperopt", "torch", "cuda", "platform", "cpus", "threads", "git_commit", "git_changed", "command")


def machine(device: torch.device) -> dict[str, Any]:
    """Returns processor, cores, threads, GPU, versions, allocator and its variables, commit and command line."""
    seen, variables = environment("cpu"), {}
    for name in VARIABLES:
        if name in os.environ:
            parts = os.environ[name].split(":")
            # of an absolute path its last part alone, which says the library and names no person
            variables[name] = ":".join(Path(part).name if part.startswith("/") else part for part in parts)
    return {
        "cpu": seen["device"],
        "cores": num_cores(Path("/proc/cpuinfo")) or seen["cpus"],
        "gpu": environment(str(device))["device"] if device.type != "cpu" else None,
        **{key: seen[key] for key in KEPT},
        "float32_on_gpu": {what: attrgetter(name)(torch.backends) for what, name in FLOAT32.items()},
        "allocator": allocator.described(),
        "variables": variables,
    }


def described(machine: dict[str, Any]) -> str:
    """Returns the content of `machine` in one line of text."""
    count = f"cores: {machine['cores']}, threads: {machine['threads']}"
    rounded = ", ".join(f"{what}: {how}" for what, how in machine["float32_on_gpu"].items())
    gpu = [] if machine["gpu"] is None else [f"{machine['gpu']} (CUDA {machine['cuda']}; float32 {rounded})"]
    variables = [f"{name}={value}" for name, value in machine["variables"].items()]
    allocated = f"allocator: {machine['allocator']}"
    return ", ".join([f"{machine['cpu']}, {count}", *gpu, f"torch {machine['torch']}", allocated, *variables])


def num_cores(cpuinfo: Path) -> int | None:
    """Returns the number of cores, not of the threads that share one; None where the system does not say.

    Args:
        cpuinfo: a file of the form of /proc/cpuinfo.
    """
    try:
        blocks = cpuinfo.read_text().split("\n\n")
    except OSError:
        return None
    cores = set()
    for block in blocks:  # a processor each
        fields = {}
        for line in block.splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
        if "core id" in fields:
            cores.add((fields.get("physical id"), fields["core id"]))
    return len(cores) or None
