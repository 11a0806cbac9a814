"""The box score: counts of hand-made predictions, exact sums for any cut of the rows, and what no score may reward."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from boxsup_dist.data.schema import Record, records_to_table
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.evaluation import boxes
from boxsup_dist.evaluation.boxes import BoxResult, box_lines, box_summary, box_unit, count_boxes
from tests.unit.evaluation.test_units import NUM_CLASSES, make_record, predict

CAT, DOG = 1, 2


def record_of(*objects: tuple[int, tuple[float, float, float, float]], difficult: int = -1, crowd: int = -1) -> Record:
    """A record of 10 x 20 px with these boxes; `difficult` and `crowd` are the index of such a box."""
    count = len(objects)
    return Record(
        image_id="i",
        source="test",
        split="val",
        image=None,
        height=10,
        width=20,
        boxes_xyxy=np.array([box for _, box in objects], np.float32).reshape(-1, 4),
        class_ids=np.array([class_id for class_id, _ in objects], np.int32),
        difficult=np.arange(count) == difficult,
        crowd=np.arange(count) == crowd,
    )


def predicted(*regions: tuple[int, tuple[int, int, int, int]]) -> np.ndarray:
    label_map = np.zeros((10, 20), np.uint8)
    for class_id, (x0, y0, x1, y1) in regions:
        label_map[y0:y1, x0:x1] = class_id
    return label_map


def of_class(result: BoxResult, class_id: int) -> dict[str, int]:
    return {field.name: int(getattr(result, field.name)[class_id]) for field in fields(result)[:-1]}


def test_counts_of_a_box_that_is_partly_filled_and_of_pixels_outside():
    result = count_boxes(record_of((CAT, (2, 2, 8, 6))), predicted((CAT, (3, 2, 8, 8)), (DOG, (12, 0, 14, 3))), 4)
    assert of_class(result, CAT) == {
        "num_boxes": 1, "num_found": 1, "box_px": 24, "tight_px": 20, "predicted_px": 30, "outside_px": 10
    }  # fmt: skip
    assert of_class(result, DOG)["outside_px"] == of_class(result, DOG)["predicted_px"] == 6
    np.testing.assert_allclose(result.score[[CAT, DOG]], [20 / 34, 0])
    np.testing.assert_allclose(result.iou[CAT], 20 / 24)
    np.testing.assert_allclose(result.outside_share[[CAT, DOG]], [1 / 3, 1])
    assert np.isnan([*result.score[[0, 3]], result.iou[DOG], result.recall[DOG]]).all()
    summary = box_summary(result, ("background", "cat", "dog", "cow"))
    assert summary["box_scores"] == {"cat": pytest.approx(2000 / 34), "dog": 0, "cow": None}
    assert summary["box_score"] == pytest.approx(1000 / 34) and summary["box_recall"] == 100
    assert summary["outside_share"] == pytest.approx(2 / 3) and summary["num_images"] == 1
    lines = box_lines(result, ("background", "cat", "dog", "cow"))
    assert [line.split()[0] for line in lines] == ["percent", "cat", "dog", "mean", "box"]
    assert lines[2].split() == ["dog", "0.00", "-", "-", "100.00"]


def test_a_box_counts_as_found_from_an_iou_of_one_half():
    record = record_of((CAT, (0, 0, 10, 10)))
    for height, found in ((5, 1), (4, 0), (0, 0)):
        assert count_boxes(record, predicted((CAT, (0, 0, 10, height))), 4).num_found[CAT] == found


def test_objects_of_one_class_that_touch_are_not_punished():
    pair = record_of((CAT, (0, 0, 10, 10)), (CAT, (10, 0, 20, 10)))
    result = count_boxes(pair, predicted((CAT, (0, 0, 20, 10))), 4)
    assert (result.score[CAT], result.recall[CAT]) == (1, 1)


def test_a_class_everywhere_fills_every_box_and_has_a_poor_score():
    result = count_boxes(record_of((CAT, (0, 0, 5, 4))), predicted((CAT, (0, 0, 20, 10))), 4)
    assert result.iou[CAT] == 1 and result.score[CAT] == 20 / (20 + 180)


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_a_difficult_box_or_a_crowd_neither_counts_nor_is_outside(kind):
    record = record_of((CAT, (0, 0, 5, 5)), (CAT, (10, 0, 20, 10)), **{kind: 1})
    result = count_boxes(record, predicted((CAT, (0, 0, 5, 5)), (CAT, (12, 0, 20, 10))), 4)
    assert (result.num_boxes[CAT], result.outside_px[CAT], result.score[CAT]) == (1, 0, 1)


def test_nothing_predicted_is_told_from_nothing_to_find():
    record, nothing = record_of((CAT, (0, 0, 5, 5))), predicted()
    assert count_boxes(record, nothing, 4).is_all_background and count_boxes(record, nothing, 4).score[CAT] == 0
    empty = count_boxes(record_of(), nothing, 4)
    assert not empty.is_all_background and box_summary(empty, ("background", "a", "b", "c"))["box_score"] is None


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_counts_are_the_same_however_the_rows_are_cut(rows):
    rng = np.random.default_rng(0)
    table = records_to_table([make_record(i, rng, with_gt=False) for i in range(8)]).select(boxes.BOX_COLUMNS)
    whole = box_unit(predict, table, NUM_CLASSES)
    parts = [box_unit(predict, table.slice(start, rows), NUM_CLASSES) for start in range(0, 8, rows)]
    for field in fields(whole):
        found = getattr(sum(parts, BoxResult.empty(NUM_CLASSES)), field.name)
        np.testing.assert_array_equal(found, getattr(whole, field.name))
    assert whole.num_images == 8 and whole.num_boxes.dtype == np.int64 and whole.num_boxes.sum() == 24


def test_what_does_not_fit_is_named():
    with pytest.raises(RecordError, match=r"differ in size; file: i"):
        count_boxes(record_of(), np.zeros((3, 3), np.uint8), 4)
    with pytest.raises(RecordError, match="class id outside the range; file: i; field: class_ids; found: 7"):
        count_boxes(record_of((7, (0, 0, 5, 5))), predicted(), 4)
    record = replace(record_of(), image=b"x")
    with pytest.raises(InputError, match="lack a column; field: crowd"):
        box_unit(predict, records_to_table([record]).drop_columns(["crowd"]), 4)
