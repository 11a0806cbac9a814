"""Static label maps: an object that stands out is found by both methods, and boxes of every size and place work."""

import numpy as np
import pytest

from boxsup_dist.assignment.static import METHODS, grabcut, static_label_map
from boxsup_dist.data.schema import Record

BOX = (20, 15, 70, 60)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A noisy red ellipse that fills BOX on a noisy green ground: image and mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :100]
    mask = ((x - 44.5) / 25) ** 2 + ((y - 37) / 22.5) ** 2 < 1
    image = np.where(mask[..., None], (200, 40, 40), (40, 160, 60)) + rng.integers(-15, 16, (80, 100, 3))
    return image.astype(np.uint8), mask


def make_record(boxes: list[tuple[int, ...]], class_ids: list[int], crowd: list[bool] | None = None) -> Record:
    return Record(
        "a", "test", "train", None, 80, 100, np.array(boxes, np.float32).reshape(-1, 4), np.array(class_ids, np.int32),
        np.zeros(len(boxes), bool), np.array(crowd or [False] * len(boxes), bool),
    )  # fmt: skip


methods = pytest.mark.parametrize("method", METHODS)


@methods
def test_an_object_that_stands_out_is_cut_out_and_the_result_repeats(method):
    image, mask = scene()
    found = static_label_map(image, make_record([BOX], [7]), METHODS[method])
    assert set(np.unique(found)) == {0, 7}
    iou = ((found == 7) & mask).sum() / ((found == 7) | mask).sum()
    rectangle = mask.sum() / ((BOX[2] - BOX[0]) * (BOX[3] - BOX[1]))
    assert iou > 0.95 > rectangle
    np.testing.assert_array_equal(found, static_label_map(image, make_record([BOX], [7]), METHODS[method]))


@methods
@pytest.mark.parametrize(
    "box", [(0, 0, 100, 80), (0, 0, 1, 1), (99, 79, 100, 80), (0, 10, 100, 11), (40, 0, 41, 80), (0, 0, 100, 79)]
)
@pytest.mark.parametrize("image", [scene()[0], np.full((80, 100, 3), 128, np.uint8)], ids=["scene", "uniform"])
def test_boxes_of_every_size_and_place_work(method, box, image):
    found = static_label_map(image, make_record([box], [3]), METHODS[method])
    assert set(np.unique(found)) <= {0, 3}
    outside = np.ones_like(found, bool)
    outside[box[1] : box[3], box[0] : box[2]] = False
    assert not found[outside].any()


def test_grabcut_takes_the_box_where_it_loses_the_object():
    image = np.full((80, 100, 3), 128, np.uint8)  # object and ground look the same
    assert grabcut(image, BOX).all()


@methods
def test_crowds_are_ignored_and_the_smaller_box_lies_in_front(method):
    image, _ = scene()
    records = make_record([(0, 0, 10, 10), BOX, (40, 30, 50, 45)], [1, 2, 3], [True, False, False])
    found = static_label_map(image, records, METHODS[method])
    assert (found[:10, :10] == 255).all() and (found[30:45, 40:50] == 3).any() and (found == 2).any()


@methods
def test_an_image_without_a_box_is_background(method):
    assert not static_label_map(scene()[0], make_record([], []), METHODS[method]).any()
