"""How the process takes memory: large tensors from a heap that stays, not from the system at each turn.

glibc gives a large block back to the system when it is freed, and the next one of that size comes page by page, each
set to zero by the kernel: at the sizes of K tangent columns that takes longer than what is computed in them. Told to
keep what is freed, a process takes its pages once. It holds on to them until it ends (`memory.give_back`
returns them).

glibc manual, "Malloc Tunable Parameters",
https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
"""

import ctypes
import os
import sys
from contextlib import suppress

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1
_CHOSEN_BY_THE_USER = ("GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Makes large blocks come from the heap, which is never trimmed from then on.

    Settings that the user has made (`MALLOC_...`, `GLIBC_TUNABLES`, another allocator in `LD_PRELOAD`) stand.

    Returns:
        Whether it was done, which takes glibc on Linux.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN_BY_THE_USER):
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    done = False
    with suppress(OSError, AttributeError):  # another C library has no such function
        mallopt = ctypes.CDLL(None).mallopt
        done = all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _LARGEST), mallopt(_TOP_PAD, 64 << 20)])
    global _kept
    _kept = done
    return done


_kept = False


def described() -> str:
    """Returns how memory is allocated, in words that a benchmark shows beside its figures."""
    return "freed memory kept" if _kept else "the system's"
