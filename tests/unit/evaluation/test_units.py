"""Row-group evaluation: exact sums for any cut of the rows, skipped images counted, images that do not fit named."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.images import encode_png
from boxsup_dist.data.painting import Painted
from boxsup_dist.data.schema import Record, records_to_table
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.evaluation import units
from boxsup_dist.evaluation.confusion import mean_iou

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


def test_label_maps_are_measured_with_and_without_what_is_ignored(records: list[Record]) -> None:
    """Of `decided` the first row is ignored and counts as background; `trained` ignores the second one, too."""

    def paint(record: Record) -> Painted:
        label_map = np.full((record.height, record.width), 2, np.uint8)
        label_map[0] = 255
        trained = label_map.copy()
        trained[1] = 255
        return Painted(label_map, trained)

    result = units.label_unit(paint, records_to_table(records), NUM_CLASSES)
    decided, trained = np.zeros((2, NUM_CLASSES, NUM_CLASSES), np.int64)
    for record in records:
        if record.gt_label_map is not None:
            ground_truth = np.asarray(Image.open(io.BytesIO(record.gt_label_map)))
            for (y, _), truth in np.ndenumerate(ground_truth):
                if truth != 255:
                    decided[truth, 2 if y else 0] += 1
                    trained[truth, 2] += y > 1
    np.testing.assert_array_equal(result.decided.confusion, decided)
    np.testing.assert_array_equal(result.trained.confusion, trained)
    assert (result.decided.num_images, result.decided.num_skipped) == (6, 2)

    metrics = (result + units.LabelResult.empty(NUM_CLASSES)).metrics()
    assert metrics["label_mean_iou"] == 100 * mean_iou(decided)
    assert metrics["trained_label_mean_iou"] == 100 * mean_iou(trained)
    assert metrics["label_recall"] == pytest.approx(100 * decided[1:, 1:].sum() / decided[1:].sum())
    assert metrics["trained_label_recall"] == 100
    assert metrics["trained_label_precision"] == pytest.approx(100 * trained[1:, 1:].sum() / trained[:, 1:].sum())
    assert metrics["label_ignored_share"] == pytest.approx(1 - trained.sum() / decided.sum())


def test_labels_of_an_image_that_does_not_decode_are_void(records: list[Record]) -> None:
    def paint(record: Record) -> Painted:
        raise RecordError("damaged", file=record.image_id)

    result = units.label_unit(paint, records_to_table(records[:1]), NUM_CLASSES)
    assert result.decided.confusion[:, 0].sum() == result.decided.confusion.sum() > 0 == result.trained.confusion.sum()
    assert result.metrics()["trained_label_recall"] is None and result.metrics()["label_ignored_share"] == 1


def test_predictions_that_are_all_background_are_told_from_images_that_are() -> None:
    empty, missed = np.zeros((2, 2), np.int64), np.array([[5, 0], [3, 0]])
    for confusion, expected in ((empty, False), (missed, True), (missed.T, False), (np.diag([5, 0]), False)):
        assert units.UnitResult(confusion, 1, 0).is_all_background == expected
