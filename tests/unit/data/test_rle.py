"""COCO run lengths: ours and pycocotools' agree, and what is no mask of that size is refused."""

import time

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from boxsup_dist.data import rle
from boxsup_dist.errors import RecordError


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 47), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_survive_and_equal_pycocotools(shape, share):
    rng = np.random.default_rng([*shape, round(100 * share)])
    for mask in (rng.random(shape) < share, np.arange(shape[0])[:, None] * np.ones(shape) >= shape[0] * (1 - share)):
        counts = rle.encode(mask)
        assert (rle.decode(counts, *shape) == mask).all()
        assert (rle.decode(counts.decode(), *shape) == mask).all()
        assert (coco_mask.decode({"size": list(shape), "counts": counts}) == mask).all()


def test_plain_counts_run_down_the_columns():
    mask = rle.decode([1, 2, 3], 2, 3)
    assert mask.dtype == bool and mask.tolist() == [[False, True, False], [True, False, False]]
    assert rle.decode([0, 6], 2, 3).all()


@pytest.mark.parametrize("counts", [[1, 2], [7], [3, -3, 6], [1.5, 4.5], [], b"", "", b"~", b"zzz", "1", b"52"])
def test_what_is_no_mask_of_the_size_is_refused(counts):
    with pytest.raises(RecordError, match=r"run lengths do not fit.*counts.*3 x 2 pixels"):
        rle.decode(counts, 2, 3)


@pytest.mark.parametrize("character", ["_", "o", "P", "0", "1"])
def test_a_million_characters_take_a_moment(character):
    """Each but the last two says that another group of its number follows; longer and longer numbers took minutes."""
    started = time.monotonic()
    with pytest.raises(RecordError, match="run lengths do not fit"):
        rle.decode(character * 1_000_000, 400, 600)
    assert time.monotonic() - started < 10


def test_the_longest_runs_survive():
    """Of the largest image, in groups of five bits."""
    for runs in ([2**26 - 1, 1], [0, 2**26], [1, 2**26 - 1]):
        mask = rle.decode(runs, 2**13, 2**13)
        assert mask.sum() == runs[1] and (rle.decode(rle.encode(mask), 2**13, 2**13) == mask).all()
