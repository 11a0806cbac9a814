"""Label maps: what every supervision paints and may read for it, and painting against drawing every pixel."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxsup_dist.config import AssignmentSettings, Supervision
from boxsup_dist.data.painting import (
    CERTAIN,
    GRANTED_COLUMNS,
    PRIOR_STEPS,
    Segment,
    both_painter,
    paint_rectangles,
    paint_segments,
    painter,
    pixel_box,
    prior_painter,
)
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, iter_records
from boxsup_dist.data.sources import Source, make_units
from boxsup_dist.errors import TableError
from tests.random_proposals import random_superpixels
from tests.unit.data.small_tables import STATIC, TRUTH, make_record, make_source

SUPERVISIONS = get_args(Supervision)
RECTANGLE = np.array([[2] * 6, [2] * 6, [0] * 6, [0] * 6], np.uint8)
NONE = np.empty(0, np.uint16)


def segment_of(*superpixel_ids: int, undecided: tuple[int, ...] = ()) -> Segment:
    return Segment(np.array(superpixel_ids, np.uint16), np.array(undecided, np.uint16))


def paint(source: Source, segments: dict, assignment: AssignmentSettings | None = None, **options) -> np.ndarray:
    """Label map of the first record, read with the columns that its supervision grants."""
    (unit,) = make_units([source])
    found = painter(unit, segments, assignment or AssignmentSettings(), **options)
    columns = GRANTED_COLUMNS[source.supervision]
    return found(next(iter_records(source.records.read(unit.where, columns))))


EXPECTED = {
    "mask": TRUTH,
    "rectangles": RECTANGLE,
    "wssl_em": RECTANGLE,
    "grabcut": STATIC,
    "wssl": STATIC,
    "label_maps": STATIC,
    "box": TRUTH,
}


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_every_supervision_paints_from_what_it_is_granted(tmp_path, supervision):
    source = make_source(tmp_path, supervision, [make_record()])
    np.testing.assert_array_equal(paint(source, {"a": [segment_of(0)]}), EXPECTED[supervision])


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_both_maps_are_those_of_the_two_painters(tmp_path, supervision):
    source = make_source(tmp_path, supervision, [make_record()])
    chosen, assignment = {"a": [segment_of(0, undecided=(1,))]}, AssignmentSettings(ignore_outside=True)
    (unit,) = make_units([source])
    record = next(iter_records(source.records.read(unit.where, GRANTED_COLUMNS[supervision])))
    both = both_painter(unit, chosen, assignment)(record)
    np.testing.assert_array_equal(both.decided, paint(source, chosen, assignment, decided=True))
    np.testing.assert_array_equal(both.trained, paint(source, chosen, assignment))
    assert (both.decided != both.trained).any() == (supervision == "box")


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_only_masks_read_ground_truth(supervision):
    granted = set(GRANTED_COLUMNS[supervision])
    assert "instance_masks" not in granted
    assert ("gt_label_map" in granted) == (supervision == "mask")


def test_rectangles_against_a_pixel_loop(tmp_path):
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (6, 2))
    boxes = np.concatenate([low, np.minimum(low + rng.integers(1, 9, (6, 2)), 15)], 1).astype(np.float32)
    record = replace(
        make_record(),
        height=15,
        width=15,
        boxes_xyxy=boxes,
        class_ids=np.arange(1, 7, dtype=np.int32),
        crowd=np.zeros(6, bool),
        difficult=np.zeros(6, bool),
    )
    found = paint(make_source(tmp_path, "rectangles", [record]), {})
    for (y, x), value in np.ndenumerate(found):
        # The smallest box that holds the pixel wins; the later one of two equally large ones.
        holding = [
            ((x1 - x0) * (y1 - y0), -k) for k, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x < x1 and y0 <= y < y1
        ]
        assert value == (1 - min(holding)[1] if holding else 0)


def test_a_segment_that_leaves_its_box_is_clipped_on_demand(tmp_path):
    source = make_source(tmp_path, "box", [make_record()])
    chosen = {"a": [segment_of(0, 2)]}
    loose, near, clipped = (paint(source, chosen, AssignmentSettings(box_margin=m)) for m in (None, 0.5, 0.0))
    assert (loose[2:, :3] == 2).all() and not clipped[2:].any()
    assert (near[2, :3] == 2).all() and not near[3:].any()


def test_undecided_and_uncovered_pixels_are_ignored_in_training_and_decided_when_measured(tmp_path):
    source = make_source(tmp_path, "box", [make_record()])
    chosen = {"a": [segment_of(0, undecided=(1,))]}
    outside = AssignmentSettings(ignore_outside=True)
    assert (paint(source, chosen)[:2, 3:] == 255).all()
    assert (paint(source, {"a": [segment_of(0)]}, outside)[:2, 3:] == 255).all()
    for assignment in (AssignmentSettings(), outside):
        np.testing.assert_array_equal(paint(source, chosen, assignment, decided=True), TRUTH)


@pytest.mark.parametrize("crowd, segments", [(True, [segment_of(0)]), (False, [None])])
def test_the_box_of_a_crowd_or_without_a_candidate_is_ignored(tmp_path, crowd, segments):
    found = paint(make_source(tmp_path, "box", [make_record(crowd=crowd)]), {"a": segments})
    assert (found[:2] == 255).all() and not found[2:].any()


def test_labels_of_other_records_are_an_error(tmp_path):
    source = make_source(tmp_path, "box", [make_record()])
    with pytest.raises(
        TableError, match=r"differ in the number of boxes.*file: .*records; field: boxes of a; found: 2; expected: 1"
    ):
        paint(source, {"a": [None, None]})


@pytest.mark.parametrize("supervision", ["box", "grabcut"])
def test_a_partner_table_that_lacks_an_image_is_an_error(tmp_path, supervision):
    source = make_source(tmp_path, supervision, [make_record("a")])
    (unit,) = make_units([source])
    with pytest.raises(TableError, match=r"lacks the image b: build it again from .*records; file: .*: image_id$"):
        painter(unit, {}, AssignmentSettings())(make_record("b"))


def slow_paint(superpixels, boxes, class_ids, crowd, segments, *, box_margin, ignore_outside, ignore_undecided):
    """Label each pixel alone: the smallest box whose segment or undecided part holds the pixel decides; without such a
    box the pixel is void or background."""
    label_map = np.zeros(superpixels.shape, np.uint8)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for y, x in np.ndindex(superpixels.shape):
        owner, value, void = None, 0, False
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            in_box = x + 1 > x0 and x < x1 and y + 1 > y0 and y < y1
            dx, dy = (0, 0) if box_margin is None else (box_margin * (x1 - x0), box_margin * (y1 - y0))
            near = x + 1 > x0 - dx and x < x1 + dx and y + 1 > y0 - dy and y < y1 + dy
            unsure = crowd[k] or segments[k] is None
            void |= in_box and (unsure or ignore_outside)
            if unsure:
                continue
            chosen = superpixels[y, x] in segments[k].superpixel_ids and (near or box_margin is None)
            undecided = ignore_undecided and in_box and superpixels[y, x] in segments[k].undecided_ids
            if (chosen or undecided) and (owner is None or areas[k] <= areas[owner]):
                owner, value = k, IGNORE_INDEX if undecided else class_ids[k]
        if owner is not None:
            label_map[y, x] = value
        elif void:
            label_map[y, x] = IGNORE_INDEX
    return label_map


def random_scene(seed, num_boxes=4):
    """Superpixels (H, W), their number, and boxes, classes, crowds and segments of num_boxes objects."""
    rng = np.random.default_rng(seed)
    height, width, count = (int(n) for n in rng.integers((1, 1, 1), (20, 20, 12)))
    superpixels = random_superpixels(rng, height, width, count)
    # Some boxes reach beyond the border; whole numbers make equal areas likely.
    boxes = np.sort(rng.uniform(-3, (width + 3, height + 3), (num_boxes, 2, 2)), axis=1).reshape(-1, 4)
    boxes = (np.round(boxes) if seed % 2 else boxes).astype(np.float32)
    segments = [
        None if rng.random() < 0.2 else Segment(*(np.flatnonzero(rng.random(count) < p) for p in (0.4, 0.2)))
        for _ in boxes
    ]
    return superpixels, count, boxes, rng.integers(1, 21, num_boxes), rng.random(num_boxes) < 0.2, segments


@pytest.mark.parametrize("box_margin", [None, 0.0, 0.25])
@pytest.mark.parametrize("ignore_outside", [False, True])
@pytest.mark.parametrize("ignore_undecided", [False, True])
def test_painting_equals_the_slow_painter(box_margin, ignore_outside, ignore_undecided):
    options = {"box_margin": box_margin, "ignore_outside": ignore_outside, "ignore_undecided": ignore_undecided}
    for seed in range(60):
        superpixels, count, boxes, class_ids, crowd, segments = random_scene(seed)
        found = paint_segments(superpixels, count, boxes, class_ids, crowd, segments, **options)
        assert found.dtype == np.uint8
        expected = slow_paint(superpixels, boxes, class_ids, crowd, segments, **options)
        np.testing.assert_array_equal(found, expected, err_msg=f"seed {seed}")


def slow_prior(superpixels, boxes, class_ids, crowd, segments):
    """Label and prior of each pixel alone, from the largest box that holds it to the smallest."""
    label_map, prior = np.zeros(superpixels.shape, np.uint8), np.full(superpixels.shape, CERTAIN, np.uint8)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for y, x in np.ndindex(superpixels.shape):
        holding = [k for k, (x0, y0, x1, y1) in enumerate(boxes) if x0 - 1 < x < x1 and y0 - 1 < y < y1]
        unsure = any(crowd[k] or segments[k] is None for k in holding)
        label, belief = IGNORE_INDEX if unsure else BACKGROUND, CERTAIN
        for k in sorted(holding, key=lambda k: -areas[k]):
            if crowd[k] or segments[k] is None:
                continue
            behind, superpixel = label, superpixels[y, x]
            if superpixel in segments[k].superpixel_ids:
                label, belief = class_ids[k], CERTAIN
            (where,) = np.nonzero(segments[k].undecided_ids == superpixel)
            if len(where) and behind == BACKGROUND:
                label, belief = class_ids[k], round(PRIOR_STEPS * float(segments[k].undecided_probability[where[0]]))
            elif len(where):
                label, belief = IGNORE_INDEX, CERTAIN
        label_map[y, x], prior[y, x] = label, belief
    return label_map, prior


def test_undecided_pixels_before_background_have_a_class_and_its_probability():
    options = {"box_margin": 0.0, "ignore_outside": False, "ignore_undecided": True}
    num_doubtful = 0
    for seed in range(60):
        superpixels, count, boxes, class_ids, crowd, segments = random_scene(seed)
        rng = np.random.default_rng(seed)
        segments = [
            None if one is None else one._replace(undecided_probability=rng.random(len(one.undecided_ids), np.float32))
            for one in segments
        ]
        prior = np.full(superpixels.shape, CERTAIN, np.uint8)
        found = paint_segments(superpixels, count, boxes, class_ids, crowd, segments, prior=prior, **options)
        expected, expected_prior = slow_prior(superpixels, boxes, class_ids, crowd, segments)
        np.testing.assert_array_equal(found, expected, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(prior, expected_prior, err_msg=f"seed {seed}")
        # Without the doubtful pixels it is the label map that ignores them.
        ignoring = paint_segments(superpixels, count, boxes, class_ids, crowd, segments, **options)
        np.testing.assert_array_equal(np.where(prior == CERTAIN, found, IGNORE_INDEX), ignoring)
        num_doubtful += (prior != CERTAIN).sum()
    assert num_doubtful > 100


def test_the_painter_of_priors_paints_the_labels_table(tmp_path):
    source = make_source(tmp_path, "box", [make_record()])
    (unit,) = make_units([source])
    chosen = {"a": [segment_of(0, undecided=(1,))._replace(undecided_probability=np.array([0.5], np.float32))]}
    record = next(iter_records(source.records.read(unit.where)))
    label_map, prior = prior_painter(unit, chosen, AssignmentSettings())(record)
    trained = painter(unit, chosen, AssignmentSettings())(record)
    assert (prior[trained == IGNORE_INDEX] == PRIOR_STEPS // 2).all() and (prior != CERTAIN).any()
    assert (prior[trained != IGNORE_INDEX] == CERTAIN).all()
    np.testing.assert_array_equal(label_map[prior == CERTAIN], trained[prior == CERTAIN])


def test_rectangles_are_segments_of_everything_clipped_to_their_box():
    for seed in range(40):
        superpixels, count, boxes, class_ids, crowd, _ = random_scene(seed)
        crowd[:] = False
        segments = [Segment(np.arange(count), NONE)] * len(boxes)
        options = {"box_margin": 0.0, "ignore_outside": False, "ignore_undecided": True}
        painted = paint_segments(superpixels, count, boxes, class_ids, crowd, segments, **options)
        np.testing.assert_array_equal(
            paint_rectangles(superpixels.shape, boxes, class_ids, crowd), painted, err_msg=f"seed {seed}"
        )


def test_rectangles_of_crowds_are_ignored():
    boxes = np.array([[0, 0, 6, 6], [2, 2, 4, 4]], np.float32)
    label_map = paint_rectangles((6, 6), boxes, np.array([5, 7]), np.array([True, False]))
    assert (label_map == 7).sum() == 4 and (label_map == IGNORE_INDEX).sum() == 32
    label_map = paint_rectangles((6, 6), boxes, np.array([5, 7]), np.array([False, True]))
    assert (label_map == 5).sum() == 32 and (label_map == IGNORE_INDEX).sum() == 4


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_smaller_box_is_in_front_whatever_the_order(order):
    superpixels = np.zeros((6, 6), np.uint16)
    superpixels[2:4, 2:4] = 1
    boxes, class_ids = np.array([[0, 0, 6, 6], [2, 2, 4, 4]], np.float32), np.array([5, 7])
    segments = [Segment(np.array([0, 1]), NONE), Segment(np.array([1]), NONE)]
    label_map = paint_segments(
        superpixels,
        2,
        boxes[order],
        class_ids[order],
        np.zeros(2, bool),
        [segments[i] for i in order],
        box_margin=None,
        ignore_outside=False,
        ignore_undecided=True,
    )
    assert (label_map == np.where(superpixels == 1, 7, 5)).all()


def test_an_image_without_boxes_is_background():
    none = np.empty((0, 4), np.float32), np.empty(0, int), np.empty(0, bool)
    options = {"box_margin": 0.0, "ignore_outside": True, "ignore_undecided": True}
    assert not paint_segments(np.zeros((3, 4), np.uint16), 1, *none, [], **options).any()
    assert not paint_rectangles((3, 4), *none).any()


@given(
    corners=st.tuples(*[st.floats(-40, 40, width=32) | st.integers(-40, 40).map(float)] * 4),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_pixel_box_holds_the_pixels_that_the_box_touches(corners, height, width):
    box = np.array([*np.minimum(corners[:2], corners[2:]), *np.maximum(corners[:2], corners[2:])])
    x0, y0, x1, y1 = pixel_box(box, height, width)
    y, x = np.mgrid[:height, :width]
    touched = (x + 1 > box[0]) & (x < box[2]) & (y + 1 > box[1]) & (y < box[3])
    found = np.zeros((height, width), bool)
    found[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(found, touched)
