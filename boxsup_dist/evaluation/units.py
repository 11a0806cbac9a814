"""Evaluation of one fixed row group: what a pool member runs, given plain arguments and no Ray.

All units return counts that add up exactly over row groups. Images without ground truth are counted as skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.painting import Painter
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, Record, iter_records
from boxsup_dist.errors import InputError, RecordError, decoding
from boxsup_dist.evaluation.confusion import confusion_matrix
from boxsup_dist.model.crf import CrfSettings, LikelyScores

LabelMapOf = Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> integers (H, W)
ScoresOf = Callable[[np.ndarray], LikelyScores]
EVALUATION_COLUMNS = ("image_id", "image", "gt_label_map")


@dataclass(frozen=True)
class UnitResult:
    """Counts of some images; `+` adds those of other images."""

    confusion: np.ndarray  # int64 (C, C)
    num_images: int  # counted in the confusion matrix
    num_skipped: int  # without ground truth

    def __add__(self, other: UnitResult) -> UnitResult:
        return UnitResult(
            self.confusion + other.confusion, self.num_images + other.num_images, self.num_skipped + other.num_skipped
        )

    @classmethod
    def empty(cls, num_classes: int) -> UnitResult:
        """The result of no image."""
        return cls(np.zeros((num_classes, num_classes), np.int64), 0, 0)


def evaluate_unit(predict: LabelMapOf, records: pa.Table, num_classes: int) -> UnitResult:
    """Confusion matrix of predictions over a records row group (at least EVALUATION_COLUMNS).

    `predict` maps an image, uint8 RGB (H, W, 3), to its label map, integers (H, W) at the image's own size.
    Raises RecordError, naming the image, where the two maps cannot be compared.
    """
    return _add_up(lambda record: predict(image_of(record)), records, num_classes)


def crf_unit(
    scores_of: ScoresOf, records: pa.Table, candidates: Sequence[CrfSettings], num_classes: int
) -> list[UnitResult]:
    """Confusion matrices without a CRF and with each candidate; `scores_of` is asked once an image.

    RecordError as evaluate_unit.
    """
    totals = [np.zeros((num_classes, num_classes), np.int64) for _ in range(len(candidates) + 1)]
    num_images = num_skipped = 0
    for record in iter_records(records):
        if record.gt_label_map is None:
            num_skipped += 1
            continue
        image = image_of(record)
        scores = scores_of(image)
        label_maps = [scores.labels[scores.log_probs.argmax(0)], *(scores.label_map(image, c) for c in candidates)]
        for total, label_map in zip(totals, label_maps, strict=True):
            with compared(record):
                total += confusion_matrix(decode_png(record.gt_label_map), label_map, num_classes)
        num_images += 1
    return [UnitResult(total, num_images, num_skipped) for total in totals]


def label_unit(paint: Painter, records: pa.Table, num_classes: int) -> UnitResult:
    """Confusion matrix of painted label maps against hidden ground truth over a records row group.

    The columns are those that `paint` reads, and gt_label_map. The measure called "label mIoU". Every pixel with ground
    truth counts, undecided ones as they were chosen: what the label map still ignores (the box of a crowd or of a box
    without candidate) counts as background, so that ignoring hard pixels can't raise the figure. Ground truth is read
    here to measure and by nobody who trains from boxes.
    """

    def painted(record: Record) -> np.ndarray:
        try:
            label_map = paint(record)
        except RecordError:  # trained as void, which the stream tells
            return np.full((record.height, record.width), BACKGROUND, np.uint8)
        return np.where(label_map == IGNORE_INDEX, BACKGROUND, label_map)

    return _add_up(painted, records, num_classes)


def _add_up(label_map_of: Painter, records: pa.Table, num_classes: int) -> UnitResult:
    total = np.zeros((num_classes, num_classes), np.int64)
    num_images = num_skipped = 0
    for record in iter_records(records):
        if record.gt_label_map is None:
            num_skipped += 1
            continue
        label_map = label_map_of(record)
        with compared(record):
            total += confusion_matrix(decode_png(record.gt_label_map), label_map, num_classes)
        num_images += 1
    return UnitResult(total, num_images, num_skipped)


@contextmanager
def compared(record: Record) -> Iterator[None]:
    """An InputError of a comparison with the record's ground truth becomes a RecordError that names the image."""
    try:
        yield
    except InputError as error:
        problem = f"cannot compare with the ground truth: {error.problem}"
        raise error.at(file=record.image_id, problem=problem, kind=RecordError) from None


def image_of(record: Record) -> np.ndarray:
    """The record's image, uint8 RGB (H, W, 3). InputError if the column was not read, RecordError if it is damaged."""
    if record.image is None:
        raise InputError("the row has no image", field="image", expected="the columns " + ", ".join(EVALUATION_COLUMNS))
    with decoding(record.image_id):
        return decode_image(record.image)
