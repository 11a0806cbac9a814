"""Overlaps from counts against drawn masks, and the metrics against their definitions."""

from dataclasses import replace

import numpy as np
import pytest

from boxsup_dist.data import rle
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import Record
from boxsup_dist.proposals import quality
from boxsup_dist.proposals.selective_search import selective_search
from boxsup_dist.proposals.settings import SelectiveSearchSettings
from tests.random_proposals import random_proposals
from tests.unit.proposals.pictures import blobs, drawn, jaccard


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
        np.testing.assert_allclose(jaccard(found, masks, valid), expected)
        best = quality.best_overlaps(found, masks, [0, 1, 7, 10**6], valid).jaccard
        assert best.shape == (3, 4) and (best[:, 0] == 0).all() and (best[2] == 0).all()
        for column, n in ((1, 1), (2, 7), (3, len(found))):
            np.testing.assert_allclose(best[:, column], expected[:n].max(0))


def test_metrics_are_those_of_their_definitions():
    rng = np.random.default_rng(1)
    cuts = [0, 3, quality.ALL]
    images = [random_proposals(rng, 20, 30, num_proposals=n) for n in (2, 9, 20)]
    objects = [([rng.random((20, 30)) < 0.4, rng.random((20, 30)) < 0.7], rng.integers(1, 4, 2)) for _ in images]
    total = sum(
        quality.tally(quality.best_overlaps(found, masks, cuts), class_ids, num_classes=5)
        for found, (masks, class_ids) in zip(images, objects, strict=True)
    )
    result = quality.metrics(total, np.array([len(found) for found in images]), cuts)
    assert list(result) == ["0", "3", "all"]
    assert [row["num_candidates"] for row in result.values()] == pytest.approx([0, 8 / 3, 31 / 3])
    for cut, row in zip(cuts, result.values(), strict=True):
        index, pixels = [], {}
        for found, (masks, class_ids) in zip(images, objects, strict=True):
            for mask, class_id in zip(masks, class_ids, strict=True):
                candidates = [np.zeros_like(mask), *drawn(found)[:cut]]
                best = max(candidates, key=lambda c, m=mask: (c & m).sum() / (c | m).sum())
                index.append((best & mask).sum() / (best | mask).sum())
                pixels.setdefault(class_id, []).append([(best & mask).sum(), (best | mask).sum()])
        by_class = [np.sum(p, 0)[0] / np.sum(p, 0)[1] for p in pixels.values()]
        assert row["mean_jaccard_instance"] == pytest.approx(np.mean(index), abs=1e-6)
        assert row["mean_jaccard_class"] == pytest.approx(np.mean(by_class), abs=1e-6)
        for threshold in (0.5, 0.7, 0.85):
            assert row[f"recall_at_{threshold}"] == pytest.approx(np.mean(np.array(index) >= threshold), abs=1e-6)


def test_no_object_has_no_metric():
    nothing = quality.tally(quality.best_overlaps(random_proposals(np.random.default_rng(0), 5, 5), [], [1]), [], 3)
    row = quality.metrics(nothing, np.array([20]), [1])["1"]
    assert row.pop("num_candidates") == 1 and set(row.values()) == {None}
    assert quality.metrics(nothing, np.array([], int), [1])["1"]["num_candidates"] is None


def make_record(**changes) -> Record:
    """Two dogs whose boxes meet, a person alone, and a person whose box shows none."""
    label_map = np.zeros((20, 30), np.uint8)
    label_map[2:10, 2:20] = 12
    label_map[3:8, 21:28] = 15
    label_map[5, :] = 255
    boxes = np.array([[2, 2, 12, 10], [10, 2, 20, 10], [21, 3, 28, 8], [0, 15, 5, 20]], np.float32)
    fields = {
        "image_id": "a",
        "source": "s",
        "split": "train",
        "image": None,
        "height": 20,
        "width": 30,
        "boxes_xyxy": boxes,
        "class_ids": np.array([12, 12, 15, 15]),
        "difficult": np.zeros(4, bool),
        "crowd": np.zeros(4, bool),
        "gt_label_map": encode_png(label_map),
    }
    return Record(**fields | changes)


def test_objects_of_class_masks_are_what_lone_boxes_show():
    objects = quality.objects_of(make_record())
    assert objects.class_ids.tolist() == [15] and (~objects.valid).sum() == 30
    assert objects.masks[0].sum() == 4 * 7 and objects.masks[0][3, 21] and not objects.masks[0][5].any()
    assert quality.objects_of(make_record(gt_label_map=None)) is None
    assert quality.objects_of(make_record(crowd=np.array([0, 0, 1, 0], bool))).masks == []


def test_objects_of_instance_masks_are_all_but_crowds():
    masks = [np.arange(600).reshape(20, 30) % n == 0 for n in (2, 3, 5, 7)]
    record = make_record(instance_masks=[rle.encode(m) for m in masks], crowd=np.array([0, 1, 0, 0], bool))
    objects = quality.objects_of(record)
    assert objects.class_ids.tolist() == [12, 15, 15] and objects.valid is None
    assert all((a == b).all() for a, b in zip(objects.masks, [masks[0], masks[2], masks[3]], strict=True))


def test_void_pixels_and_boxes_without_an_object_count_nowhere():
    masks = [np.arange(600).reshape(20, 30) % n == 0 for n in (2, 3, 5, 601)]
    masks[3][:] = False
    objects = quality.objects_of(make_record(instance_masks=[rle.encode(m) for m in masks]))
    assert objects.class_ids.tolist() == [12, 12, 15]
    assert (~objects.valid).sum() == 30 and not objects.valid[5].any()
    nothing = make_record(boxes_xyxy=np.zeros((0, 4)), class_ids=np.zeros(0, int), crowd=np.zeros(0, bool))
    assert quality.objects_of(replace(nothing, instance_masks=[])).masks == []


def test_distribution():
    assert quality.distribution([1, 2, 3, 10]) == {"mean": 4, "median": 2.5, "p90": 7.9, "p99": 9.79, "max": 10}


def test_recall_counts_objects():
    best = quality.Overlaps(np.array([[0.2, 0.5], [0.7, 0.7], [0.1, 0.9]]), *[np.ones((3, 2))] * 2)
    found = quality.metrics(quality.tally(best, np.array([1, 2, 2]), 3), np.array([9]), [3, 9])
    assert [row["recall_at_0.5"] for row in found.values()] == [pytest.approx(1 / 3, abs=1e-6), 1]


def test_lone_boxes():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [10, 0, 20, 5], [0, 0, 30, 30]], np.float32)
    assert quality.lone_boxes(boxes, np.array([1, 1, 1, 2])).tolist() == [False, False, True, True]
    assert quality.lone_boxes(np.empty((0, 4)), np.empty(0)).shape == (0,)
