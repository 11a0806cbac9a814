"""Random numbers as pure functions of what they are for: (seed, epoch, image_id, ...) and nothing else.

No generator is shared or carried along, so the numbers are the same on any worker, in any order and after a restart.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from integers and strings; other keys give independent seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def draw_integer(below: int, *key: int | str) -> int:
    """A uniform integer in 0..below-1 for this key."""
    return derive_seed(*key) % below


def generator(*key: int | str) -> np.random.Generator:
    """A numpy generator for this key."""
    return np.random.default_rng(derive_seed(*key))
