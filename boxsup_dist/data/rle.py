"""Masks as COCO run lengths: columns one below the other, runs of 0 and 1 in turn, the first of 0 (it may be empty).

The compressed form writes each run as the difference to the run two before it (from the fourth run on), five bits a
character, the lowest first, as the characters from "0" on; 32 marks that another character follows, 16 the sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from boxsup_dist.errors import RecordError

_FIRST, _CONTINUES, _SIGN, _BITS = 48, 32, 16, 5


def encode(mask: np.ndarray) -> bytes:
    """The compressed counts of a bool or uint8 mask (H, W)."""
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def decode(counts: bytes | str | Sequence[int], height: int, width: int) -> np.ndarray:
    """Mask bool (height, width) of counts, compressed or plain numbers.

    RecordError unless they are counts of exactly so many pixels: pycocotools would give whatever the memory holds.
    """
    runs = _uncompress(counts) if isinstance(counts, bytes | str) else counts
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != height * width:
        shown = counts if len(counts) <= 20 else counts[:20]
        raise RecordError(
            "not the run lengths of such a mask",
            field="counts",
            value=shown,
            expected=f"runs of {width} x {height} pixels together",
        )
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(width, height).T


def _uncompress(counts: bytes | str) -> list[int]:
    """Run lengths; a wrong character or a cut end gives runs that don't fit."""
    runs: list[int] = []
    value = shift = 0
    for character in counts if isinstance(counts, bytes) else counts.encode():
        bits = character - _FIRST
        value |= (bits & (_CONTINUES - 1)) << shift
        shift += _BITS
        if not bits & _CONTINUES:
            value -= (bits & _SIGN) << (shift - _BITS + 1)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs
