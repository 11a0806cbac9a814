"""Row-group evaluation: exact sums however the rows are cut, skips counted, misfits named."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from boxsup_dist.errors import InputError, RecordError, TableError
from boxsup_dist.evaluation import units
from boxsup_dist.evaluation.confusion import confusion_matrix
from boxsup_dist.regions import Segment, encode_png, proposals_to_table
from boxsup_dist.schema import Proposals, Record, records_to_table

NUM_CLASSES = 4


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def make_record(index: int, rng: np.random.Generator, with_gt: bool = True, num_boxes: int = 3) -> Record:
    height, width = (int(v) for v in rng.integers(6, 20, 2))
    low = rng.integers(0, (width - 2, height - 2), (num_boxes, 2))
    high = low + rng.integers(1, 8, (num_boxes, 2))
    ground_truth = rng.integers(0, NUM_CLASSES, (height, width)).astype(np.uint8)
    ground_truth[rng.random((height, width)) < 0.1] = 255
    return Record(
        image_id=f"image_{index}",
        source="test",
        split="val",
        image=png(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)),
        height=height,
        width=width,
        boxes_xyxy=np.concatenate([low, np.minimum(high, (width, height))], 1).astype(np.float32),
        class_ids=rng.integers(1, NUM_CLASSES, num_boxes).astype(np.int32),
        difficult=np.zeros(num_boxes, bool),
        crowd=np.zeros(num_boxes, bool),
        gt_label_map=encode_png(ground_truth) if with_gt else None,
    )


def predict(image: np.ndarray) -> np.ndarray:
    return image[..., 0] % NUM_CLASSES


@pytest.fixture
def records() -> list[Record]:
    rng = np.random.default_rng(0)
    return [make_record(i, rng, with_gt=i % 3 != 2) for i in range(8)]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_evaluation_is_the_same_however_the_rows_are_cut(records: list[Record], rows: int) -> None:
    table = records_to_table(records)
    total = units.UnitResult.empty(NUM_CLASSES)
    for start in range(0, len(records), rows):
        total += units.evaluate_unit(predict, table.slice(start, rows), NUM_CLASSES)

    expected = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    for record in records:
        if record.gt_label_map is not None and record.image is not None:
            image = np.asarray(Image.open(io.BytesIO(record.image)))
            ground_truth = np.asarray(Image.open(io.BytesIO(record.gt_label_map)))
            for t, p in zip(ground_truth.ravel(), predict(image).ravel(), strict=True):
                if t != 255:
                    expected[t, p] += 1
    np.testing.assert_array_equal(total.confusion, expected)
    assert (total.num_images, total.num_skipped) == (6, 2)


def test_evaluation_reads_three_columns_only(records: list[Record]) -> None:
    table = records_to_table(records)
    whole = units.evaluate_unit(predict, table, NUM_CLASSES)
    few = units.evaluate_unit(predict, table.select(units.EVALUATION_COLUMNS), NUM_CLASSES)
    np.testing.assert_array_equal(whole.confusion, few.confusion)


@pytest.mark.parametrize(
    "bad", [lambda image: np.zeros((1, 1), np.uint8), lambda image: np.full(image.shape[:2], NUM_CLASSES)]
)
def test_a_misfit_names_the_image(records: list[Record], bad: Callable) -> None:
    with pytest.raises(RecordError, match="image_0"):
        units.evaluate_unit(bad, records_to_table(records), NUM_CLASSES)


def test_rows_without_the_image_column_are_an_error(records: list[Record]) -> None:
    with pytest.raises(InputError, match="no image"):
        units.evaluate_unit(predict, records_to_table(records).drop_columns(["image"]), NUM_CLASSES)


def test_rectangles_against_a_pixel_loop(records: list[Record]) -> None:
    table = records_to_table(records).select(units.LABEL_COLUMNS)
    result = units.label_unit(units.rectangles_painter(), table, NUM_CLASSES)
    expected = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for record in records:
        if record.gt_label_map is None:
            continue
        ground_truth = np.asarray(Image.open(io.BytesIO(record.gt_label_map)))
        for y in range(record.height):
            for x in range(record.width):
                # The smallest box that holds the pixel wins; the later one of two equally large ones.
                holding = [
                    ((x1 - x0) * (y1 - y0), -k, record.class_ids[k])
                    for k, (x0, y0, x1, y1) in enumerate(record.boxes_xyxy)
                    if x0 <= x < x1 and y0 <= y < y1
                ]
                if ground_truth[y, x] != 255:
                    expected[ground_truth[y, x], min(holding)[2] if holding else 0] += 1
    np.testing.assert_array_equal(result.confusion, expected)
    assert (result.num_images, result.num_skipped) == (6, 2)


def quadrants(record: Record) -> Proposals:
    """Four superpixels, one a quarter of the image, each a proposal."""
    rows, columns = np.indices((record.height, record.width))
    superpixels = 2 * (rows >= record.height // 2) + (columns >= record.width // 2)
    return Proposals(
        image_id=record.image_id,
        superpixels=superpixels.astype(np.uint16),
        num_superpixels=4,
        indptr=np.arange(5),
        indices=np.arange(4, dtype=np.uint16),
        objectness=np.zeros(4, np.float32),
        boxes=np.zeros((4, 4), np.uint16),
    )


def one_image(crowd: bool = False) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """A 4x6 image with one box over its upper half, class 2."""
    ground_truth = np.zeros((4, 6), np.uint8)
    ground_truth[:2, :3] = 2
    record = Record(
        image_id="a",
        source="test",
        split="train",
        image=b"",
        height=4,
        width=6,
        boxes_xyxy=np.array([[0, 0, 6, 2]], np.float32),
        class_ids=np.array([2], np.int32),
        difficult=np.zeros(1, bool),
        crowd=np.array([crowd]),
        gt_label_map=encode_png(ground_truth),
    )
    return records_to_table([record]), proposals_to_table([quadrants(record)]), ground_truth


def segment_of(*superpixel_ids: int) -> Segment:
    """Those superpixels, all of them undecided, which the measure must not see."""
    ids = np.array(superpixel_ids, np.uint16)
    return Segment(ids, ids)


@pytest.mark.parametrize("clip_to_box", [False, True])
def test_the_right_segment_gives_a_perfect_label_map(clip_to_box: bool) -> None:
    records, proposals, ground_truth = one_image()
    chosen = {"a": [segment_of(0)]}
    paint = units.segments_painter(chosen, proposals.select(units.SUPERPIXEL_COLUMNS), clip_to_box=clip_to_box)
    confusion = units.label_unit(paint, records, NUM_CLASSES).confusion
    np.testing.assert_array_equal(confusion, confusion_matrix(ground_truth, ground_truth, NUM_CLASSES))


def test_a_segment_that_leaves_its_box_is_clipped_on_demand() -> None:
    records, proposals, _ = one_image()
    chosen = {"a": [segment_of(0, 2)]}
    loose, clipped = (
        units.label_unit(units.segments_painter(chosen, proposals, clip_to_box=clip), records, NUM_CLASSES).confusion
        for clip in (False, True)
    )
    assert (loose[0, 2], clipped[0, 2]) == (6, 0)


@pytest.mark.parametrize(("crowd", "segment"), [(True, (0,)), (False, None)])
def test_ignored_pixels_of_the_label_map_count_as_background(crowd: bool, segment: tuple[int, ...] | None) -> None:
    records, proposals, ground_truth = one_image(crowd)
    chosen = {"a": [None if segment is None else segment_of(*segment)]}
    paint = units.segments_painter(chosen, proposals, clip_to_box=False)
    confusion = units.label_unit(paint, records, NUM_CLASSES).confusion
    np.testing.assert_array_equal(confusion, confusion_matrix(ground_truth, np.zeros_like(ground_truth), NUM_CLASSES))
    assert confusion.sum() == ground_truth.size


def test_tables_that_do_not_belong_together_are_an_error() -> None:
    records, proposals, _ = one_image()
    two_boxes = units.segments_painter({"a": [None, None]}, proposals, clip_to_box=False)
    with pytest.raises(TableError, match="does not fit"):
        units.label_unit(two_boxes, records, NUM_CLASSES)
    no_image = units.segments_painter({"a": [None]}, proposals.slice(0, 0), clip_to_box=False)
    with pytest.raises(TableError, match="lacks an image"):
        units.label_unit(no_image, records, NUM_CLASSES)
