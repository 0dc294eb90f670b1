"""`--nproc N`: the same command as N processes on this machine.

Signals that this process gets go on to all. Where one of them ends without success the others are given time to end by
themselves, which they do once they miss it; then they are ended.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType

from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.signals import SIGNALS

PR_SET_PDEATHSIG = 1
GRACE_S = 30.0
LOOK_EVERY_S = 0.05
RUN_AGAIN, INTERRUPTED = 75, 130


def launched(command: Sequence[str], num: int, env: Mapping[str, str] = os.environ) -> tuple[int, list[str]]:
    """Runs `command` as `num` ranks.

    Args:
        command: the command with its arguments.
        num: how many processes are started, at least 1.
        env: the environment of the processes, to which their ranks are added.

    Returns:
        The exit code, and what to say of ranks that a signal has ended.

    Raises:
        UsageError: `num` is below 1.
    """
    if num < 1:
        raise UsageError(f"--nproc: got {num}; must be at least 1")
    common = {**_threads(num, env), **env, "WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": env.get("GLOO_SOCKET_IFNAME", "lo")}
    ranks: list[subprocess.Popen[bytes]] = []
    come: list[int] = []
    left: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        come.append(number)
        for rank in ranks:
            with suppress(ProcessLookupError):
                rank.send_signal(number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        for k in range(num):
            own = {**common, "RANK": str(k), "LOCAL_RANK": str(k)}
            # a session of its own: Ctrl-C reaches it once, from here
            ranks.append(subprocess.Popen(command, env=own, start_new_session=True, preexec_fn=_end_with_parent))
        if come:  # before all of them were there
            forward(come[0], None)
        _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        left += [k for k, rank in enumerate(ranks) if rank.poll() is None]
        for k in left:
            ranks[k].kill()
    codes = [INTERRUPTED if rank.wait() == -signal.SIGINT else rank.wait() for rank in ranks]
    lost = [f"rank {k} of {num} {_end(code, k in left)}" for k, code in enumerate(codes) if code < 0]
    return _code(codes), lost


def _end_with_parent() -> None:
    """Asks the kernel to end this rank when the process that started it is killed, which only Linux can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Waits until all ranks have ended, or the time is over in which they should have."""
    limit: float | None = None
    while any(rank.poll() is None for rank in ranks):
        if limit is None and any(rank.poll() not in (None, 0) for rank in ranks):
            limit = time.monotonic() + GRACE_S
        if limit is not None and time.monotonic() > limit:
            return
        time.sleep(LOOK_EVERY_S)


def _code(codes: Sequence[int]) -> int:
    """Returns one exit code for all: the first rank's that ended with an error, else 75 where any was lost, else 0."""
    own = [code for code in codes if code > 0 and code != RUN_AGAIN]
    if own:
        return own[0]
    return RUN_AGAIN if any(codes) else 0


def _end(code: int, was_left: bool) -> str:
    if was_left:
        return f"did not end within {GRACE_S:g} s after another, and was killed"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}"


def _threads(num: int, env: Mapping[str, str]) -> dict[str, str]:
    """Returns variables that divide the processors among the ranks, each of which would use all of them."""
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // num))}


def free_port() -> int:
    """Returns a port that nobody listens at so far."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def this_command() -> list[str]:
    """Returns the command line of this process, with which another can be started."""
    return [sys.executable, "-P", "-m", "hyperopt_cli", *sys.argv[1:]]
