"""The evaluation of one fixed row group: pure functions that a pool member runs.

All functions return counts that add up exactly over row groups. Images without ground truth are counted as skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.painting import Painted
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, Record, iter_records
from boxsup_dist.errors import InputError, RecordError, decoding
from boxsup_dist.evaluation.by_image import SCHEMA, sparse_rows
from boxsup_dist.evaluation.confusion import confusion_matrix, foreground_shares, mean_iou
from boxsup_dist.model.crf import CrfSettings, LikelyScores

R = TypeVar("R")
LabelMapOf = Callable[[NDArray[np.uint8]], NDArray[Any]]  # image (H, W, 3) -> label map of integers (H, W)
ScoresOf = Callable[[NDArray[np.uint8]], LikelyScores]  # image (H, W, 3) -> its scores
EVALUATION_COLUMNS = ("image_id", "image", "gt_label_map")


@dataclass(frozen=True)
class UnitResult:
    """Counts of some images; `+` adds those of other images."""

    confusion: NDArray[np.int64]  # (C, C), rows ground truth, columns prediction
    num_images: int  # counted in the confusion matrix
    num_skipped: int  # without ground truth
    by_image: pa.Table = field(default_factory=SCHEMA.empty_table)  # of single images; evaluate_unit gives them

    def __add__(self, other: UnitResult) -> UnitResult:
        return UnitResult(
            self.confusion + other.confusion,
            self.num_images + other.num_images,
            self.num_skipped + other.num_skipped,
            pa.concat_tables([self.by_image, other.by_image]),
        )

    @property
    def is_all_background(self) -> bool:
        """True if every pixel is predicted as background although the ground truth has objects."""
        return bool(self.confusion[1:].any() and not self.confusion[:, 1:].any())

    @classmethod
    def empty(cls, num_classes: int) -> UnitResult:
        """The result of no image."""
        return cls(np.zeros((num_classes, num_classes), np.int64), 0, 0)


def evaluate_unit(predict: LabelMapOf, records: pa.Table, num_classes: int) -> UnitResult:
    """Confusion matrix of predictions over a records row group, and those of its images.

    Args:
        predict: Maps an image, uint8 RGB (H, W, 3), to its label map, integers (H, W).
        records: Rows with EVALUATION_COLUMNS.
        num_classes: C, with the background.

    Raises:
        RecordError: An image is damaged, or its two maps cannot be compared; names the image.
    """
    by_image = []
    for record in iter_records(records):
        if record.gt_label_map is None:
            continue
        label_map = predict(image_of(record))
        with compared(record):
            matrix = confusion_matrix(decode_png(record.gt_label_map), label_map, num_classes)
        by_image.append((record.image_id, matrix))
    total = sum((matrix for _, matrix in by_image), np.zeros((num_classes, num_classes), np.int64))
    return UnitResult(total, len(by_image), records.num_rows - len(by_image), sparse_rows(by_image))


def crf_unit(
    scores_of: ScoresOf, records: pa.Table, candidates: Sequence[CrfSettings], num_classes: int
) -> list[UnitResult]:
    """Confusion matrices without a CRF and with each candidate CRF over a records row group.

    Args:
        scores_of: The scores of an image, uint8 RGB (H, W, 3); called once per image.
        records: Rows with EVALUATION_COLUMNS.
        candidates: Settings of the CRFs.
        num_classes: C, with the background.

    Returns:
        The result without a CRF, then that of each candidate.

    Raises:
        RecordError: As `evaluate_unit`.
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


@dataclass(frozen=True)
class LabelResult:
    """How label maps compare with the ground truth of some images; `+` adds those of other images."""

    decided: UnitResult  # all pixels, undecided ones as they were chosen; what is still ignored counts as background
    trained: UnitResult  # the pixels that are trained on: no ignored ones

    def __add__(self, other: LabelResult) -> LabelResult:
        return LabelResult(self.decided + other.decided, self.trained + other.trained)

    @classmethod
    def empty(cls, num_classes: int) -> LabelResult:
        """The result of no image."""
        return cls(UnitResult.empty(num_classes), UnitResult.empty(num_classes))

    def metrics(self) -> dict[str, float | None]:
        """The metrics of the history: mean IoU, recall and precision of the foreground in percent, the ignored share.

        None: there is no such pixel.
        """
        found: dict[str, float | None] = {}
        for name, result in (("label", self.decided), ("trained_label", self.trained)):
            found[f"{name}_mean_iou"] = 100 * mean_iou(result.confusion)
            shares = foreground_shares(result.confusion)
            for key, value in (("recall", shares.recall), ("precision", shares.precision)):
                found[f"{name}_{key}"] = None if np.isnan(value) else 100 * value
        all_px, trained_px = int(self.decided.confusion.sum()), int(self.trained.confusion.sum())
        return found | {"label_ignored_share": 1 - trained_px / all_px if all_px else None}


def label_unit(paint: Callable[[Record], Painted], records: pa.Table, num_classes: int) -> LabelResult:
    """Confusion matrices of painted label maps against ground truth over a records row group ("label mIoU").

    In `decided` every pixel with ground truth counts, undecided ones as they were chosen. A pixel that the label map
    still ignores (in the box of a crowd, or in a box without a candidate) counts as background there, so that ignoring
    hard pixels cannot raise the metric. The ground truth is only measured with; training from boxes never reads it.

    Args:
        paint: Makes both label maps of a record.
        records: Rows with gt_label_map and the columns that `paint` reads.
        num_classes: C, with the background.

    Raises:
        RecordError: The maps of an image cannot be compared; names the image.
    """
    decided, trained = (np.zeros((num_classes, num_classes), np.int64) for _ in range(2))
    num_images = 0
    for record in iter_records(records):
        if record.gt_label_map is None:
            continue
        try:
            maps = paint(record)
        except RecordError:  # trained as void; the training stream reports it
            void = np.full((record.height, record.width), IGNORE_INDEX, np.uint8)
            maps = Painted(void, void)
        with compared(record):
            truth = decode_png(record.gt_label_map)
            decided += confusion_matrix(truth, _without_ignored(maps.decided), num_classes)
            truth = np.where(maps.trained == IGNORE_INDEX, IGNORE_INDEX, truth)
            trained += confusion_matrix(truth, _without_ignored(maps.trained), num_classes)
        num_images += 1
    num_skipped = records.num_rows - num_images
    return LabelResult(UnitResult(decided, num_images, num_skipped), UnitResult(trained, num_images, num_skipped))


def _without_ignored(label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(label_map == IGNORE_INDEX, BACKGROUND, label_map)


@contextmanager
def compared(record: Record) -> Iterator[None]:
    """Turn an InputError of a comparison with the ground truth into a RecordError that names the image."""
    try:
        yield
    except InputError as error:
        problem = f"cannot compare with the ground truth: {error.problem}"
        raise error.at(file=record.image_id, problem=problem, kind=RecordError) from None


def image_of(record: Record) -> NDArray[np.uint8]:
    """The record's image, RGB (H, W, 3).

    Raises:
        InputError: The column `image` was not read.
        RecordError: The image is damaged.
    """
    if record.image is None:
        raise InputError("the row has no image", field="image", expected="the columns " + ", ".join(EVALUATION_COLUMNS))
    with decoding(record.image_id):
        return decode_image(record.image)


def in_turn(scores: list[LikelyScores]) -> ScoresOf:
    """Give the scores of images that are asked for in the order of these scores."""
    rest = iter(scores)
    return lambda image: next(rest)


def with_crf(scores_of: ScoresOf, rows: pa.Table, *, judge: Callable[[LabelMapOf, pa.Table], R], crf: CrfSettings) -> R:
    """Judge the label maps that a CRF makes of the scores."""
    return judge(lambda image: scores_of(image).label_map(image, crf), rows)
