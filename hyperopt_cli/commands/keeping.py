"""When a run writes a checkpoint, what stands in it, and what ends the run after it.

outer         where the outer loop stands (`outer/descent.py`), with the training runs of its step that are done or
              begun (`outer/replicas.py`): of one that is begun, what its mode resumes from (`modes/account.py`)
record        the start and the best so far
measurements  what was decided by measuring
data          the digest of the examples
sources       the digests of the user's own code

`commands/run.py` puts these together. There is no state of a generator: every draw has a seed of its own
(`data/seeds.py`), and a batch is a function of its step.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hyperopt_cli.errors import Stopped
from hyperopt_cli.ranks.group import ALONE, Ranks
from hyperopt_cli.run_directory.checkpoints import Checkpoint, Checkpoints
from hyperopt_cli.run_directory.environment import device_name
from hyperopt_cli.run_directory.signals import StopFlag

DRIVER = Path("/proc/driver/nvidia/version")
SHARE = 0.1  # of the time may go into writing


class RunKeeper:
    """Writes a checkpoint at regular intervals, and when a signal has come.

    Args:
        checkpoints: where checkpoints are written.
        every_s: least seconds between two; writing takes at most a tenth of the time, so slow disks get fewer.
        flag: set by signals.
        bits: what the bits of a gradient depend on (`bits_depend_on`).
        beside_outer: returns what else a checkpoint holds, and whether the best so far is in none yet.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every_s: float,
        flag: StopFlag,
        bits: dict[str, Any],
        beside_outer: Callable[[], tuple[dict[str, Any], bool]],
    ) -> None:
        self._checkpoints, self._every_s, self._flag, self._beside_outer = checkpoints, every_s, flag, beside_outer
        self._bits = bits
        self._last_s, self._took_s = time.monotonic(), 0.0
        self.last: str | None = None

    def due(self) -> bool:
        """Returns whether a signal has come, or the interval has passed."""
        wait_s = max(self._every_s, self._took_s / SHARE)
        return self._flag.signal is not None or time.monotonic() - self._last_s >= wait_s

    def save(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint; `state` is the state of a descent.

        Raises:
            Stopped: a signal had come.
            StorageError: it cannot be written.
        """
        began, (beside, is_best) = time.monotonic(), self._beside_outer()
        tree = {"outer": state, **beside}
        self.last = self._checkpoints.write(state["n"], state["progress"], tree, self._bits, is_best)
        self._last_s = time.monotonic()
        self._took_s = self._last_s - began
        if self._flag.signal is not None:
            raise Stopped(self._flag.signal)

    def barrier(self) -> None:
        """Does nothing, because no other rank has to be waited for."""


def bits_depend_on(device: torch.device, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Returns what the bits of a gradient depend on beside the recipe: versions, device, threads and ranks."""
    cuda: dict[str, Any] = {}
    if device.type == "cuda":
        try:  # NVIDIA's driver may compile kernels itself
            driver = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text())
        except OSError:
            driver = None
        cudnn: Any = torch.backends.cudnn
        cuda = {"cuda": torch.version.cuda, "cudnn": cudnn.version(), "driver": None if driver is None else driver[0]}
    return {
        "torch": torch.__version__,
        "device": f"{device.type} {device_name(device)}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **cuda,
        "threads": torch.get_num_threads(),
        "ranks": ranks.size if ranks.divides("batch") else 1,
    }


def usable_here(checkpoint: Checkpoint, now: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Returns the state to resume from, and why a part of it was left out: it needs the bits of another machine.

    Args:
        checkpoint: the checkpoint as it was written.
        now: what the bits of a gradient depend on here.
    """
    tree, before = checkpoint.tree, checkpoint.bits_depend_on
    inner = tree["outer"]["inner"]
    portable = [[replica, run] for replica, run in inner if not run["mode"].get("same_bits")]
    if len(portable) == len(inner) or now == before:
        return tree, None
    changed = [f"{key} {before.get(key)!r}, now {now[key]!r}" for key in now if before.get(key) != now[key]]
    why = (
        f"outer step {tree['outer']['n']} starts again: its steps would be undone with other bits than they were made "
        f"({'; '.join(changed)})"
    )
    return {**tree, "outer": {**tree["outer"], "inner": portable}}, why
