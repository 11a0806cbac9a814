"""All native methods: what holds for every image, and images at the edge of what is possible."""

from typing import get_args

import numpy as np
import pytest

from boxsup_dist.errors import SettingError
from boxsup_dist.proposals import edges, features
from boxsup_dist.proposals.gop import gop
from boxsup_dist.proposals.mcg import detect, mcg
from boxsup_dist.proposals.methods import METHODS, find_method
from boxsup_dist.proposals.settings import (
    BOUNDARIES,
    COLOUR_SPACES,
    SETTINGS,
    GopSettings,
    McgSettings,
    MethodName,
    NativeMethod,
    Tree,
)
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
@pytest.mark.parametrize("method", ["mcg", "gop"])
def test_invariants(method, image):
    found = METHODS[method].propose(image, METHODS[method].settings_type(), image_id="a")
    assert found.image_id == "a" and found.superpixels.shape == image.shape[:2]
    assert found.superpixels.dtype == found.indices.dtype == np.uint16
    assert np.unique(found.superpixels).tolist() == list(range(found.num_superpixels))
    sets = [tuple(found.members(j).tolist()) for j in range(len(found))]
    assert len(set(sets)) == len(sets) > 0 and all(s and list(s) == sorted(set(s)) for s in sets)
    assert (np.diff(found.objectness) < 0).all() and len(found.objectness) == len(found)
    for mask, box in zip(drawn(found), found.boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("method", ["mcg", "gop"])
def test_same_image_same_proposals_and_no_near_duplicates(method):
    propose, settings = METHODS[method].propose, METHODS[method].settings_type(duplicate_jaccard=0.7)
    one, two = propose(blobs(), settings), propose(blobs(), settings)
    for field in ("superpixels", "indptr", "indices", "objectness", "boxes"):
        assert np.array_equal(getattr(one, field), getattr(two, field))
    overlaps = jaccard(one, list(drawn(one)))
    np.fill_diagonal(overlaps, 0)
    assert overlaps.max() <= 0.7


@pytest.mark.parametrize("method", ["mcg", "gop"])
def test_objects_of_one_colour_are_found(method):
    image = np.full((60, 80, 3), 120, np.uint8)
    truth = np.zeros((60, 80), bool)
    truth[10:40, 20:35] = truth[25:40, 20:70] = True
    image[truth] = (220, 60, 30)
    settings = METHODS[method].settings_type(duplicate_jaccard=0.95)  # the best of near-duplicates counts here
    found = METHODS[method].propose(image, settings)
    assert jaccard(found, [truth]).max() > 0.93  # smoothing moves borders by a pixel


def test_max_candidates_cuts_by_rank():
    everything, some = mcg(blobs()), mcg(blobs(), McgSettings(max_candidates=20))
    assert len(some) == 20 < len(everything)
    assert all(np.array_equal(some.members(j), everything.members(j)) for j in range(20))


@pytest.mark.parametrize("method", ["mcg", "gop"])
def test_large_images_are_segmented_smaller_and_mapped_back(method):
    settings = METHODS[method].settings_type(max_side_px=115)
    found = METHODS[method].propose(blobs(230, 101), settings)
    assert found.superpixels.shape == (230, 101)
    assert np.unique(found.superpixels).tolist() == list(range(found.num_superpixels))
    assert found.boxes[:, 2].max() == 101 and found.boxes[:, 3].max() == 230


@pytest.mark.parametrize("method", get_args(NativeMethod))
@pytest.mark.parametrize("shape", [(4000, 60), (60, 4000)])
def test_images_of_4000_pixels(method, shape):
    found = METHODS[method].propose(blobs(*shape), METHODS[method].settings_type())
    assert found.superpixels.shape == shape and 0 < len(found) <= 2000
    assert found.boxes[:, 2].max() == shape[1] and found.boxes[:, 3].max() == shape[0]


def test_boundaries_given_or_not():
    image, settings = blobs(120, 50), McgSettings(max_side_px=60)
    (boundaries,) = detect([image], settings)
    assert boundaries.mean.shape == boundaries.coarse.shape == (60, 25)
    assert boundaries.mean.min() >= 0 and boundaries.mean.max() <= 1
    given, own = mcg(image, settings, boundaries=boundaries), mcg(image, settings)
    assert np.array_equal(given.indices, own.indices)


def test_tree_text():
    assert Tree.parse("lab:ctsf") == Tree("lab", "ctsf", "mean")
    assert Tree.parse("ssffb@coarse") == Tree(None, "ssffb", "coarse")
    assert Tree.parse("ssffb").weights().tolist() == [0, 0, 2, 2, 1]


@pytest.mark.parametrize("text", ["", "lab", "c", "lab:sf", "xyz:c", "lab:cq", "sf@coarse", "lab:cb@fine", "lab:cb@"])
def test_texts_that_are_no_tree(text):
    with pytest.raises(SettingError, match=r"hierarchies.*expected: "):
        McgSettings(hierarchies=(text,))


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [(McgSettings, "max_candidates", 0), (McgSettings, "max_leaves", 70000), (McgSettings, "hierarchies", ()),
     (McgSettings, "pair_steps", 99999), (McgSettings, "triplet_steps", 201), (McgSettings, "edges", "hed"),
     (McgSettings, "hed_weights", "a.pth"), (GopSettings, "num_seeds", 0), (GopSettings, "level_ratio", 0.9)],
)  # fmt: skip
def test_settings_out_of_range(settings, field, value):
    with pytest.raises(SettingError, match="hed_weights" if field == "edges" else field):
        settings(**{field: value})


def test_find_method():
    assert find_method("gop") == (METHODS["gop"], GopSettings())
    with pytest.raises(SettingError, match="not the settings of the method"):
        find_method("gop", McgSettings())
    assert len(gop(blobs(), GopSettings(max_candidates=5))) == 5


def test_the_names_that_settings_offer_are_those_of_the_methods():
    assert set(COLOUR_SPACES) == set(features._CONVERSIONS)
    assert edges.Boundaries._fields == BOUNDARIES
    assert set(METHODS) == set(get_args(MethodName)) == set(SETTINGS)
