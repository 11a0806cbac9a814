"""Masks as COCO's run lengths.

The pixels are read column by column. Runs of 0 and of 1 alternate; the first run is of 0 and may be empty. The
compressed form is a string (https://github.com/cocodataset/cocoapi, common/maskApi.c, rleToString):

- from the fourth run on, a run is stored as its difference to the run two places before it;
- a number is cut into groups of five bits, the lowest group first;
- a group is the character of code 48 + bits; 32 is added when another group follows;
- bit 16 of the last group is the sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from boxsup_dist.errors import RecordError

_FIRST, _CONTINUES, _SIGN, _BITS = 48, 32, 16, 5
_MAX_SHIFT = 60  # a number of more groups fits no mask, and would take time that grows with the square of its length


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    """Encode a mask (H, W) as compressed run lengths."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts


def decode(counts: bytes | str | Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Decode run lengths, compressed or plain numbers, to a mask (height, width).

    Raises:
        RecordError: Unless the runs cover exactly height * width pixels. pycocotools does not check this and would
            return uninitialised memory.
    """
    runs = _uncompress(counts) if isinstance(counts, bytes | str) else counts
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != height * width:
        shown = counts if len(counts) <= 20 else counts[:20]
        raise RecordError(
            "the run lengths do not fit the mask",
            field="counts",
            value=shown,
            expected=f"runs that add up to {width} x {height} pixels",
        )
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(width, height).T


def _uncompress(counts: bytes | str) -> list[int]:
    """Return plain run lengths; a wrong character or a cut end gives runs that do not fit the mask."""
    runs: list[int] = []
    value = shift = 0
    for character in counts if isinstance(counts, bytes) else counts.encode():
        bits = character - _FIRST
        value |= (bits & (_CONTINUES - 1)) << shift
        shift += _BITS
        if shift > _MAX_SHIFT:
            return [-1]
        if not bits & _CONTINUES:
            value -= (bits & _SIGN) << (shift - _BITS + 1)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs
