"""Bytes: of a state, free in the memory where it lies, and at the peak of what a function does."""

import ctypes
import errno
import gc
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_leaves

from hyperopt_cli.errors import NoMemoryError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# What torch and the libraries below it say where memory is lacking, and raise no error of its own for.
LACKING = ("allocate memory", "out of memory", "not enough memory", "ALLOC_FAILED", "std::bad_alloc")


def is_lacking(error: BaseException) -> bool:
    """Returns whether `error` says that memory was lacking, on the host or on a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    says_so = isinstance(error, RuntimeError) and any(words in str(error) for words in LACKING)
    return says_so or isinstance(error, torch.OutOfMemoryError | MemoryError | NoMemoryError)


def state_bytes(state: Any) -> int:
    """Returns the bytes of the numbers in a state (or any tree of tensors)."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(state))


def available_bytes(device: torch.device) -> int:
    """Returns the bytes that can still be taken on `device`; those of the host unless it is a CUDA device.

    Of a CUDA device what is free, or what the process's own share of it leaves, and what torch holds for later.
    """
    if device.type != "cuda":
        return host_bytes()
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    index = torch.cuda.current_device() if device.index is None else device.index  # asked for by the share alone
    allowed = int(torch.cuda.get_per_process_memory_fraction(index) * total) - reserved
    return max(0, min(free, allowed)) + reserved - torch.cuda.memory_allocated(device)


def host_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Returns the bytes that the kernel calls available, or what control groups and `ulimit` leave of them."""
    return max(0, min([_of_machine(proc), *_of_groups(proc, cgroups), *_of_limit(proc)]))


def reset_peak(device: torch.device) -> None:
    """Makes `peak_bytes` start anew at what is held now, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        (PROC / "self/clear_refs").write_text("5")  # Linux: the high-water mark of what is resident


def peak_bytes(device: torch.device) -> int:
    """Returns the peak of resident bytes (on a GPU: of allocated ones) since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = (PROC / "self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def give_back() -> None:
    """Gives memory that glibc holds free back to the system: what was used before must not count for what comes."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no such function
            ctypes.CDLL(None).malloc_trim(0)


def tidy_up() -> None:
    """Gives back what is held for nobody, on the host and on GPUs."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA is not in use
    give_back()


def taken_by(function: Callable[[], object], device: torch.device) -> int:
    """Returns the bytes that `function` takes at its peak beyond what is held before it."""
    give_back()
    reset_peak(device)
    before = peak_bytes(device)
    function()
    return peak_bytes(device) - before


def _of_machine(proc: Path) -> int:
    try:
        return int((proc / "meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        page = os.sysconf("SC_PAGE_SIZE")
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            return page * os.sysconf("SC_AVPHYS_PAGES")
        return page * os.sysconf("SC_PHYS_PAGES") // 2  # macOS says only how much there is in all


def _of_limit(proc: Path) -> list[int]:
    """Returns the addresses that `ulimit -v` still allows, with those that are free in the process's heap."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    try:
        pages = int((proc / "self/statm").read_text().split()[0])
    except OSError:
        return []
    return [limit - pages * os.sysconf("SC_PAGE_SIZE") + _free_in_heap()]


class _MallInfo(ctypes.Structure):
    """What glibc says of its heap: mallinfo(3)."""

    _before: ClassVar = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in (*_before, "fordblks", "keepcost")]


def _free_in_heap() -> int:
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):  # another C library, or an old one
        return 0
    mallinfo.restype = _MallInfo
    return int(mallinfo().fordblks)


def _of_groups(proc: Path, cgroups: Path) -> list[int]:
    """Returns what each control group of the process, up to the root, still allows: its limit less its usage.

    What the kernel would drop first (files that nobody reads) does not count as used.
    """
    left = []
    for folder, names in _folders(proc, cgroups):
        limit, usage, idle = (_number(folder / names[0]), _number(folder / names[1]), _idle(folder, names[2]))
        if limit is not None and usage is not None:
            left.append(limit - usage + idle)
    return left


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def _folders(proc: Path, cgroups: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """Returns the groups' folders, and the names of the files there."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (cgroups / "memory", V1) if controllers else (cgroups, V2)
        own = root / path.lstrip("/")  # absent where a container sees its own group as the root
        above = [folder for folder in own.parents if folder.is_relative_to(root)]
        found += [(folder, names) for folder in (own, *above)]
    return found


def _number(path: Path) -> int | None:
    """Reads a number; None where there is no such file, or no limit ("max")."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _idle(folder: Path, name: str) -> int:
    try:
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return next((int(value) for key, value in lines if key == name), 0)
    except (OSError, ValueError):
        return 0
