"""Selective Search: what holds for every image, and images at the edge of what is possible."""

import numpy as np
import pytest

from boxsup_dist.errors import SettingError
from boxsup_dist.proposals.selective_search import selective_search
from boxsup_dist.proposals.settings import SelectiveSearchSettings, Strategy
from tests.unit.proposals.pictures import blobs, drawn, jaccard

NOISE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
IMAGES = {
    "blobs": blobs(),
    "noise": NOISE,
    "grey": np.repeat(NOISE[..., :1], 3, 2),
    "uniform": np.full((40, 50, 3), 200, np.uint8),
    "two colours": np.repeat(np.repeat(np.uint8([[[0], [255]]]), 30, 0), 30, 1).repeat(3, 2),
    "one pixel": np.zeros((1, 1, 3), np.uint8),
    "one row": NOISE[:1],
    "one column": NOISE[:, :1],
    "two pixels": NOISE[:1, :2],
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_invariants(image):
    found = selective_search(image, image_id="a", settings=SelectiveSearchSettings(min_leaf_px=10))
    assert found.image_id == "a" and found.superpixels.shape == image.shape[:2]
    assert found.superpixels.dtype == found.indices.dtype == np.uint16
    assert np.unique(found.superpixels).tolist() == list(range(found.num_superpixels))
    sets = [tuple(found.members(j).tolist()) for j in range(len(found))]
    assert len(set(sets)) == len(sets) > 0 and all(s and list(s) == sorted(set(s)) for s in sets)
    assert tuple(range(found.num_superpixels)) in sets
    assert (np.diff(found.objectness) < 0).all() and len(found.objectness) == len(found)
    for mask, box in zip(drawn(found), found.boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_same_image_same_proposals():
    one, two = selective_search(blobs()), selective_search(blobs())
    for field in ("superpixels", "indptr", "indices", "objectness", "boxes"):
        assert np.array_equal(getattr(one, field), getattr(two, field))


def test_objects_of_one_colour_are_found():
    image = np.full((60, 80, 3), 120, np.uint8)
    truth = np.zeros((60, 80), bool)
    truth[10:40, 20:35] = truth[25:40, 20:70] = True
    image[truth] = (220, 60, 30)
    found = selective_search(image)
    assert jaccard(found, [truth]).max() > 0.93  # smoothing moves borders by a pixel


def test_max_candidates_cuts_by_rank():
    everything = selective_search(blobs(), SelectiveSearchSettings(min_leaf_px=5, max_candidates=10**6))
    some = selective_search(blobs(), SelectiveSearchSettings(min_leaf_px=5, max_candidates=20))
    assert len(some) == 20 < len(everything)
    assert all(np.array_equal(some.members(j), everything.members(j)) for j in range(20))


def test_large_images_are_segmented_smaller_and_mapped_back():
    image = blobs(230, 101)
    found = selective_search(image, SelectiveSearchSettings(max_side_px=115, min_leaf_px=10))
    assert found.superpixels.shape == (230, 101)
    assert np.unique(found.superpixels).tolist() == list(range(found.num_superpixels))
    assert found.boxes[:, 2].max() == 101 and found.boxes[:, 3].max() == 230


def test_strategy_text():
    assert Strategy.parse("lab:ctsf") == Strategy("lab", "ctsf", 0)
    assert Strategy.parse("hsv:c@150.5") == Strategy("hsv", "c", 150.5)


@pytest.mark.parametrize("text", ["lab", "lab:", "xyz:c", "lab:cq", "lab:c@", "lab:c@-3", "lab:c@far"])
def test_texts_that_are_no_strategy(text):
    with pytest.raises(SettingError, match=r"strategies.*expected: SPACE:SIMILARITIES"):
        SelectiveSearchSettings(strategies=(text,))


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_candidates", 0), ("leaf_scale", 0.0), ("min_leaf_px", 0), ("max_leaves", 70000), ("leaf_spaces", ("cmyk",)),
     ("leaf_spaces", ()), ("strategies", ()), ("duplicate_jaccard", 1.5), ("max_side_px", 0)],
)  # fmt: skip
def test_settings_out_of_range(field, value):
    with pytest.raises(SettingError, match=field):
        SelectiveSearchSettings(**{field: value})
