"""Superpixel maps: boxes against the drawn masks, and the encoding."""

import numpy as np
import pytest

from boxsup_dist.data.images import encode_png
from boxsup_dist.data.superpixels import decode_superpixels, encode_superpixels, superpixel_extents, union_boxes
from tests.random_proposals import random_proposals


def test_extents_and_unions_equal_the_drawn_masks():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        height, width, count = (int(n) for n in rng.integers((1, 1, 1), (25, 25, 20)))
        proposals = random_proposals(rng, height, width, num_superpixels=count)
        extents = superpixel_extents(proposals.superpixels, count)
        for index, extent in enumerate(extents.tolist()):
            rows, columns = np.nonzero(proposals.superpixels == index)
            if len(rows):
                assert extent == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            else:
                assert extent == [width, height, 0, 0]
        boxes = union_boxes(extents, proposals.indptr, proposals.indices)
        np.testing.assert_array_equal(boxes, proposals.boxes)


def test_extents_of_an_empty_window():
    assert superpixel_extents(np.empty((0, 5), np.uint16), 2).tolist() == [[5, 0, 0, 0]] * 2
    assert union_boxes(np.empty((0, 4), np.int32), np.array([0]), np.empty(0, np.uint16)).shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (13, 17)])
def test_superpixel_maps_survive_their_encoding(shape):
    superpixels = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    for given_as in (superpixels, superpixels.astype(np.int64)):
        decoded = decode_superpixels(encode_superpixels(given_as))
        assert decoded.dtype == np.uint16 and (decoded == superpixels).all()


def test_bytes_that_are_no_superpixel_map_are_refused():
    whole = encode_superpixels(np.arange(600, dtype=np.uint16).reshape(20, 30))
    foreign = encode_png(np.zeros((4, 4), np.uint8))  # its first bytes, read as a size, are many terabytes
    for bad in (b"", b"abc", whole[:-3], whole[:9], foreign, b"\1" + whole[1:]):
        with pytest.raises(OSError, match="not an encoded superpixel map"):
            decode_superpixels(bad)
