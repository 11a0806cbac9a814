"""Jaccard indices from counts against drawn masks."""

import numpy as np

from boxsup_dist.proposals import quality
from boxsup_dist.proposals.selective_search import SelectiveSearchSettings, selective_search
from tests.unit.proposals.pictures import blobs, drawn


def test_equals_drawing_every_mask():
    image = blobs()
    found = selective_search(image, SelectiveSearchSettings(min_leaf_px=10))
    rng = np.random.default_rng(0)
    masks = [image[..., 0] > 120, rng.random(image.shape[:2]) < 0.3, np.zeros(image.shape[:2], bool)]
    for valid in (None, rng.random(image.shape[:2]) < 0.9):
        counted = np.ones(image.shape[:2], bool) if valid is None else valid
        expected = np.array(
            [[(d & m & counted).sum() / max(((d | m) & counted).sum(), 1) for m in masks] for d in drawn(found)]
        )
        np.testing.assert_allclose(quality.jaccard(found, masks, valid), expected)
        best = quality.best_jaccard(found, masks, [0, 1, 7, 10**6], valid)
        assert best.shape == (3, 4) and (best[:, 0] == 0).all() and (best[2] == 0).all()
        for column, n in ((1, 1), (2, 7), (3, len(found))):
            np.testing.assert_allclose(best[:, column], expected[:n].max(0))


def test_recall_counts_objects():
    best = np.array([[0.2, 0.5], [0.7, 0.7], [0.1, 0.9]])
    assert quality.recall(best, 0.5).tolist() == [1 / 3, 1]


def test_lone_boxes():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [10, 0, 20, 5], [0, 0, 30, 30]], np.float32)
    assert quality.lone_boxes(boxes, np.array([1, 1, 1, 2])).tolist() == [False, False, True, True]
    assert quality.lone_boxes(np.empty((0, 4)), np.empty(0)).shape == (0,)
