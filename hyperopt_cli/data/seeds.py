"""Seeds: everything random is drawn from a seed that says what it is for.

There is no global generator and no order of draws, so any step can be replayed alone. Draws are made on the CPU,
because a CUDA generator gives other numbers from the same seed.
"""

import hashlib

import torch


def derive(seed: int, *labels: int | str) -> int:
    """Returns a 63-bit seed that is a fixed function of `seed` and `labels`.

    Args:
        seed: the seed to derive from, any integer.
        labels: what the new seed is for, e.g. `"epoch", 3`; `3` and `"3"` differ, and so do `"ab"` and `"a", "b"`.

    Returns:
        An integer in [0, 2**63), the same on every machine and version of Python.

    >>> derive(0, "epoch", 3) == derive(0, "epoch", 3) != derive(0, "epoch", 4)
    True
    """
    digest = hashlib.blake2b(repr((seed, *labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *labels: int | str) -> torch.Generator:
    """Returns a CPU generator that starts from `derive(seed, *labels)`."""
    return torch.Generator().manual_seed(derive(seed, *labels))
