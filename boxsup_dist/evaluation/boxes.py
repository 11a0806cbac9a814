"""What boxes alone say about predictions: how well they fill the given boxes, and what they predict outside of them.

Where no mask is known, mean IoU cannot be measured. This can, per class c, as counts of int64 that add up exactly:

- The pixels predicted as c are cut at each box of c. Their tight box lies inside the given box, so its IoU with the
  given box is the quotient of the two areas. Objects of one class that touch are not punished: nothing is split into
  regions. A box is found if this IoU is at least 0.5.
- A pixel predicted as c outside every box of c is wrong for certain.

The **box score** of a class joins both, in the form of an IoU: the areas of the tight boxes, over the areas of the
given boxes plus the pixels outside. The score of a network is the mean over classes, as for mean IoU: a class that has
neither box nor prediction is left out, a class that is only predicted has score 0. docs/box-score.md compares it with
mean IoU.

A box that is `difficult` or of a crowd need not be filled, and what is predicted in it is not outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import BACKGROUND, Record, iter_records
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.evaluation.units import LabelMapOf, image_of

FOUND_IOU = 0.5
BOX_COLUMNS = ("image_id", "image", "height", "width", "boxes_xyxy", "class_ids", "difficult", "crowd")


@dataclass(frozen=True)
class BoxResult:
    """Counts of some images by class, int64 (C,) each; `+` adds those of other images. The background has none."""

    num_boxes: NDArray[np.int64]  # without difficult boxes and crowds
    num_found: NDArray[np.int64]  # of them, with a tight box of IoU >= FOUND_IOU
    box_px: NDArray[np.int64]  # sum of the areas of the boxes
    tight_px: NDArray[np.int64]  # sum of the areas of the tight boxes in them
    predicted_px: NDArray[np.int64]
    outside_px: NDArray[np.int64]  # of the predicted pixels, those outside every box of the class
    num_images: int

    def __add__(self, other: BoxResult) -> BoxResult:
        return BoxResult(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @classmethod
    def empty(cls, num_classes: int) -> BoxResult:
        """The result of no image."""
        counts = (np.zeros(num_classes, np.int64) for _ in range(6))
        return cls(*counts, num_images=0)  # type: ignore[misc, arg-type]  # six arrays, which mypy cannot count

    @property
    def score(self) -> NDArray[np.float64]:
        """Box score (C,) of every class, 0..1; nan for a class that has neither box nor prediction."""
        return _quotient(self.tight_px, self.box_px + self.outside_px)

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU (C,) of the tight boxes with the given boxes, 0..1, weighted by area; nan for a class without boxes."""
        return _quotient(self.tight_px, self.box_px)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share (C,) of the boxes that are found; nan for a class without boxes."""
        return _quotient(self.num_found, self.num_boxes)

    @property
    def outside_share(self) -> NDArray[np.float64]:
        """Share (C,) of a class's predicted pixels outside every box of it; nan for a class without prediction."""
        return _quotient(self.outside_px, self.predicted_px)

    @property
    def is_all_background(self) -> bool:
        """True if every pixel is predicted as background although there are boxes."""
        return bool(self.num_boxes.any() and not self.predicted_px.any())


def _quotient(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return found


def mean_of(values: NDArray[np.float64]) -> float | None:
    """Mean over the classes that have a value; None if no class has one."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def count_boxes(record: Record, prediction: NDArray[np.integer[Any]], num_classes: int) -> BoxResult:
    """Compare the prediction of an image with its boxes.

    Args:
        record: Its size and boxes.
        prediction: Label map (H, W) of values 0..C-1.
        num_classes: C, with the background.

    Raises:
        RecordError: The prediction has another size than the record, or the record a class that C lacks.
    """
    shape = (record.height, record.width)
    if prediction.shape != shape:
        raise RecordError(
            "prediction and record differ in size", file=record.image_id, value=prediction.shape, expected=str(shape)
        )
    if len(record.class_ids) and int(record.class_ids.max()) >= num_classes:
        raise RecordError(
            "class id outside the range",
            file=record.image_id,
            field="class_ids",
            value=int(record.class_ids.max()),
            expected=f"1..{num_classes - 1}",
        )
    found = BoxResult.empty(num_classes)
    found.predicted_px[:] = np.bincount(prediction.ravel(), minlength=num_classes)
    found.predicted_px[BACKGROUND] = 0
    found.outside_px[:] = found.predicted_px
    for class_id in np.unique(record.class_ids):
        is_class = prediction == class_id
        is_outside = is_class.copy()
        for k in np.flatnonzero(record.class_ids == class_id):
            x0, y0, x1, y1 = pixel_box(record.boxes_xyxy[k], *shape)
            is_outside[y0:y1, x0:x1] = False
            if record.difficult[k] or record.crowd[k]:
                continue
            box_px, tight_px = (x1 - x0) * (y1 - y0), tight_area(is_class[y0:y1, x0:x1])
            found.num_boxes[class_id] += 1
            found.num_found[class_id] += tight_px > 0 and tight_px >= FOUND_IOU * box_px
            found.box_px[class_id] += box_px
            found.tight_px[class_id] += tight_px
        found.outside_px[class_id] = np.count_nonzero(is_outside)
    return replace(found, num_images=1)


def tight_area(mask: NDArray[np.bool_]) -> int:
    """Area in pixels of the smallest box around a mask (H, W); 0 for an empty one."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int((columns[-1] - columns[0] + 1) * (rows[-1] - rows[0] + 1)) if len(columns) else 0


def box_unit(predict: LabelMapOf, records: pa.Table, num_classes: int) -> BoxResult:
    """Compare predictions with the boxes of a records row group; its masks are not read.

    Args:
        predict: Maps an image, uint8 RGB (H, W, 3), to its label map, integers (H, W).
        records: Rows with BOX_COLUMNS.
        num_classes: C, with the background.

    Raises:
        InputError: The rows lack a column.
        RecordError: An image is damaged, or its prediction does not fit the record; names the image.
    """
    missing = [name for name in BOX_COLUMNS if name not in records.column_names]
    if missing:
        raise InputError("the rows lack a column", field=missing[0], expected="the columns " + ", ".join(BOX_COLUMNS))
    results = (count_boxes(record, predict(image_of(record)), num_classes) for record in iter_records(records))
    return sum(results, BoxResult.empty(num_classes))


def box_summary(result: BoxResult, class_names: Sequence[str]) -> dict[str, Any]:
    """The measures as JSON values; None: there is no such box or prediction.

    Scores, IoU and recall are in percent, `outside_share` is in 0..1. Each is the mean over the classes; `box_scores`
    has the score by class. The names are those of the history and of MLflow.
    """

    def percent(share: float | None) -> float | None:
        return None if share is None or np.isnan(share) else 100 * float(share)

    scores = zip(class_names, result.score, strict=True)
    return {
        "box_score": percent(mean_of(result.score)),
        "box_scores": {name: percent(value) for name, value in list(scores)[1:]},
        "box_iou": percent(mean_of(result.iou)),
        "box_recall": percent(mean_of(result.recall)),
        "outside_share": mean_of(result.outside_share),
        "num_images": result.num_images,
    }


def box_lines(result: BoxResult, class_names: Sequence[str]) -> list[str]:
    """The measures of every class that occurs, and their means, as a table for a person to read."""

    def line(name: str, score: float | None, iou: float | None, recall: float | None, outside: float | None) -> str:
        cells = (
            "-" if share is None or np.isnan(share) else f"{100 * share:.2f}" for share in (score, iou, recall, outside)
        )
        return " ".join((f"{name:<14}", *(f"{cell:>9}" for cell in cells)))

    columns = (result.score, result.iou, result.recall, result.outside_share)
    lines = [f"{'percent':<14} {'box score':>9} {'box IoU':>9} {'recall':>9} {'outside':>9}"]
    for name, *values in zip(class_names, *columns, strict=True):
        if not all(np.isnan(values)):
            lines.append(line(name, *values))
    return [
        *lines,
        line("mean", *(mean_of(values) for values in columns)),
        f"box score of {result.num_images} images; no record has a mask, so mean IoU is unknown",
    ]
