"""`launched`: N processes that know their ranks, get every signal, and end as one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hyperopt_cli.errors import UsageError
from hyperopt_cli.ranks import launching
from hyperopt_cli.ranks.launching import launched

START = "import os, signal, sys, time; from pathlib import Path; rank = os.environ['RANK']\n"


def python(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", START + text]


def ended(*codes: str) -> tuple[int, list[str]]:
    """How ranks end together, each of which is a line of sh."""
    cases = " ".join(f"{rank}) {code} ;;" for rank, code in enumerate(codes))
    return launched(["sh", "-c", f'case "$RANK" in {cases} esac'], len(codes))


def test_each_rank_is_told_who_it_is(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "MASTER_PORT", "MINE")
    told = "; ".join(f"echo ${name}" for name in names)
    env = {"PATH": os.environ["PATH"], "MINE": "x"}
    assert launched(["sh", "-c", f"({told}) >{tmp_path}/$RANK"], 3, env) == (0, [])
    lines = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    for rank, line in enumerate(lines):
        assert line[:5] == [str(rank), str(rank), "3", "127.0.0.1", "lo"]
        assert line[5:] == [lines[0][5], "x"]
    assert int(lines[0][5]) > 0


@pytest.mark.parametrize(("given", "expected"), [({}, None), ({"OMP_NUM_THREADS": "7"}, 7)])
def test_processors_are_divided_unless_threads_are_given(
    tmp_path: Path, given: dict[str, str], expected: int | None
) -> None:
    launched(["sh", "-c", f"echo $OMP_NUM_THREADS >{tmp_path}/$RANK"], 2, {"PATH": os.environ["PATH"], **given})
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert int((tmp_path / "1").read_text()) == (share if expected is None else expected)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        (("exit 0", "exit 0"), 0),
        (("exit 75", "exit 75"), 75),
        (("exit 0", "exit 75"), 75),
        (("exit 75", "exit 2"), 2),
        (("exit 2", "exit 75", "exit 0"), 2),
        (("exit 130", "exit 130"), 130),
        (("kill -INT $$", "exit 75"), 130),
        (("exit 4", "kill -KILL $$"), 4),
    ],
)
def test_an_error_of_the_run_comes_before_a_rank_that_was_lost_and_that_before_success(
    codes: tuple[str, ...], code: int
) -> None:
    assert ended(*codes)[0] == code


def test_a_rank_that_a_signal_has_ended_is_told_and_the_run_can_be_run_again() -> None:
    assert ended("exit 75", "kill -KILL $$") == (75, ["rank 1 of 2 was ended by SIGKILL"])
    assert ended("kill -SEGV $$", "exit 0", "exit 0") == (75, ["rank 0 of 3 was ended by SIGSEGV"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_goes_on_to_every_rank(name: str, tmp_path: Path) -> None:
    """Rank 1 sends it to the launcher, once both listen."""
    before = signal.getsignal(getattr(signal, name))
    text = (
        f"here = Path({str(tmp_path)!r})\n"
        f"signal.signal(signal.{name}, lambda *_: ((here / ('got' + rank)).touch(), os._exit(75)))\n"
        "(here / rank).touch()\n"
        "while rank == '1' and not (here / '0').exists(): time.sleep(0.01)\n"
        f"if rank == '1': os.kill(os.getppid(), signal.{name})\n"
        "time.sleep(20)\n"
    )
    assert launched(python(text), 2) == (75, [])
    assert (tmp_path / "got0").exists()
    assert (tmp_path / "got1").exists()
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_signal_that_comes_before_the_ranks_are_there_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    start, num = subprocess.Popen, iter(range(2))

    def started(*arguments: Any, **options: Any) -> Any:
        if next(num) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return start(*arguments, **options)

    monkeypatch.setattr(launching.subprocess, "Popen", started)
    code, told = ended("exec sleep 20", "exec sleep 20")
    assert code == 75
    assert told == [f"rank {rank} of 2 was ended by SIGTERM" for rank in range(2)]


def test_what_does_not_end_after_another_has_failed_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE_S", 0.3)
    began = time.monotonic()
    code, told = ended("trap '' TERM; exec sleep 20", "exit 2")
    assert time.monotonic() - began < 10
    assert (code, told) == (2, ["rank 0 of 2 did not end within 0.3 s after another, and was killed"])


def test_others_may_take_their_time_after_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE_S", 0.1)
    assert ended("sleep 0.5", "exit 0") == (0, [])


def test_an_error_on_the_way_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def wait(ranks: list[Any]) -> None:
        started.extend(ranks)
        raise OSError("no more")

    monkeypatch.setattr(launching, "_wait", wait)
    with pytest.raises(OSError, match="no more"):
        ended("exec sleep 20", "exec sleep 20")
    assert [rank.wait(5) for rank in started] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("num", [0, -1])
def test_less_than_one_process_is_refused(num: int) -> None:
    with pytest.raises(UsageError, match=f"--nproc: got {num}"):
        launched(["true"], num)
