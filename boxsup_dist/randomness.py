"""Random numbers that are a pure function of a key: (seed, epoch, image_id, ...).

There is no shared generator and no state. The same key gives the same numbers on every worker, in every order of calls
and after a restart. A key is any sequence of integers and strings; `1` and `"1"` are different parts.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*key: int | str) -> int:
    """Return the seed of a key, 0 <= seed < 2**63; different keys give independent seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def draw_integer(below: int, *key: int | str) -> int:
    """Return the uniform integer of a key, 0 <= integer < below."""
    return derive_seed(*key) % below


def generator(*key: int | str) -> np.random.Generator:
    """Return a new NumPy generator, seeded by a key."""
    return np.random.default_rng(derive_seed(*key))
