"""Freed memory is kept, unless whoever runs the process has said otherwise."""

import os
import subprocess
import sys

import pytest

from hyperopt_cli import allocator

SETTINGS = [
    {"MALLOC_TRIM_THRESHOLD_": "131072"},
    {"MALLOC_ARENA_MAX": "2"},
    {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    {"LD_PRELOAD": ""},
]
SAID = "from hyperopt_cli import allocator; print(allocator.keep_freed_memory(), allocator.described())"
# A block of 64 MiB is written to and freed several times; how often the system had to give a page of it.
FAULTS = """
import ctypes, resource, sys
from hyperopt_cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
def turn():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def output(code: str, *arguments: str, **settings: str) -> str:
    """Of a Python of its own, in which nothing is set but this."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=plain | settings, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def is_glibc() -> bool:
    return sys.platform == "linux" and "glibc" in os.confstr("CS_GNU_LIBC_VERSION")


@pytest.mark.skipif(not is_glibc(), reason="another C library")
def test_freed_memory_is_kept() -> None:
    assert output(SAID) == "True freed memory kept"


@pytest.mark.skipif(not is_glibc(), reason="another C library")
def test_a_large_block_takes_its_pages_once() -> None:
    """Without it nearly every page comes anew at each turn; with huge pages these are few, but not none."""
    given_back, kept = int(output(FAULTS, "leave")), int(output(FAULTS, "keep"))
    assert given_back >= 4 * 32
    assert kept < given_back / 4


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: next(iter(each)))
def test_settings_of_the_user_stand(settings: dict[str, str]) -> None:
    assert output(SAID, **settings) == "False the system's"


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()


def test_a_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    monkeypatch.setattr(allocator, "_kept", False)
    assert not allocator.keep_freed_memory()
    assert allocator.described() == "the system's"


def test_the_command_line_asks_for_it_before_anything_else() -> None:
    code = """
import sys
from hyperopt_cli import allocator
from hyperopt_cli.cli import main
sys.argv = ["hyperopt", "ls"]
try:
    main()
except SystemExit:
    print(allocator.described())
"""
    assert output(code).splitlines()[-1] == ("freed memory kept" if is_glibc() else "the system's")
