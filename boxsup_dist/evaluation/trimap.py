"""The quality of predictions near object boundaries: trimap bands (the paper's figure 4) and Boundary IoU.

Reads ground truth and predicted label maps; returns integer counts that add up exactly over images.

Trimap (Kohli et al. 2009; Kraehenbuehl and Koltun 2011). The contour of a ground truth is its void pixels
(IGNORE_INDEX): the line that VOC draws around every object, and the "difficult" regions that VOC leaves void. If a map
has no void at all (SBD), the contour is the pixels that differ from one of their four neighbours. The band of width w
holds the pixels at most w rows and w columns away from the contour: the contour dilated with a square of 2 w + 1. Each
width has two confusion matrices: of the pixels inside its band and of those outside. Void itself counts nowhere.

Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562). The boundary region of a class is its pixels at most
d rows and columns from its outside; d is 2 % of the image's diagonal, rounded, at least 1. Boundary IoU is the
intersection over the union of the regions in ground truth and prediction. We compute it per class over the whole set,
as VOC computes IoU: both counts are summed over the images first. The border of the image is outside, as in the
authors' code. Void belongs to no class, even if a class is predicted there, so a perfect prediction has 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import IGNORE_INDEX, iter_records
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.confusion import confusion_matrix, mean_iou
from boxsup_dist.evaluation.units import LabelMapOf, compared, image_of

BOUNDARY_SHARE = 0.02  # depth of the boundary region, as a share of the image's diagonal


@dataclass(frozen=True)
class BoundaryResult:
    """Counts of some images, for B band widths and C classes; `+` adds the counts of other images."""

    inside: NDArray[np.int64]  # (B, C, C): confusion matrix inside the band of each width
    outside: NDArray[np.int64]  # (B, C, C): confusion matrix outside it
    intersection: NDArray[np.int64]  # (C,): pixels in the boundary regions of both ground truth and prediction
    union: NDArray[np.int64]  # (C,): pixels in either region
    num_images: int  # images that are counted
    num_skipped: int  # images without ground truth

    def __add__(self, other: BoundaryResult) -> BoundaryResult:
        return BoundaryResult(
            self.inside + other.inside,
            self.outside + other.outside,
            self.intersection + other.intersection,
            self.union + other.union,
            self.num_images + other.num_images,
            self.num_skipped + other.num_skipped,
        )

    @classmethod
    def empty(cls, num_classes: int, num_widths: int) -> BoundaryResult:
        """The counts of no image."""
        bands = np.zeros((num_widths, num_classes, num_classes), np.int64)
        return cls(bands, bands, np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), 0, 0)

    @property
    def boundary_iou(self) -> NDArray[np.float64]:
        """Boundary IoU of every class, (C,); nan for a class in neither ground truth nor prediction."""
        nothing = np.full(len(self.union), np.nan)
        iou: NDArray[np.float64] = np.divide(self.intersection, self.union, out=nothing, where=self.union > 0)
        return iou


def check_widths(widths_px: Sequence[int], boundary_share: float = BOUNDARY_SHARE) -> None:
    """Check the settings of a boundary measurement.

    Raises:
        SettingError: There is no width, a width is below 1 px, or the share of the diagonal is not in 0..1.
    """
    if not widths_px or any(width < 1 for width in widths_px):
        raise SettingError(
            "a width of the band is out of range",
            field="widths",
            value=tuple(widths_px),
            expected="at least one width, >= 1 px",
        )
    if not 0 < boundary_share < 1:
        raise SettingError(
            "a setting is out of range",
            field="boundary_share",
            value=boundary_share,
            expected="0 < share < 1",
        )


def contour(ground_truth: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Contour pixels (H, W) of a label map (H, W): its void pixels or, without any, both sides of every boundary."""
    void: NDArray[np.bool_] = ground_truth == IGNORE_INDEX
    if void.any():
        return void
    found = np.zeros(ground_truth.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = ground_truth[one] != ground_truth[other]
        found[one] |= differs
        found[other] |= differs
    return found


def bands(ground_truth: NDArray[np.integer], widths_px: Sequence[int]) -> NDArray[np.bool_]:
    """Bands (B, H, W) of the B widths around the contour of a label map (H, W); a band includes the contour."""
    near = contour(ground_truth)
    if not near.any():
        return np.zeros((len(widths_px), *near.shape), bool)
    distance = _chessboard_distance(~near)
    found: NDArray[np.bool_] = np.stack([distance <= width for width in widths_px])
    return found


def boundary_distance_px(height: int, width: int, share: float = BOUNDARY_SHARE) -> int:
    """Depth d of the boundary region in an image of this size."""
    return max(1, round(share * math.hypot(height, width)))


def boundary_region(mask: NDArray[np.bool_], depth_px: int) -> NDArray[np.bool_]:
    """Pixels of a mask (H, W) at most depth_px rows and columns from a pixel outside the mask or the image."""
    padded = np.pad(mask, 1)
    return mask & (_chessboard_distance(padded)[1:-1, 1:-1] <= depth_px)


def _chessboard_distance(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Distance (H, W) to the nearest pixel outside the mask: rows or columns, whichever are more."""
    # Imported here because every worker of a run imports this module, and few measure boundaries.
    from scipy.ndimage import distance_transform_cdt

    distance: NDArray[np.int32] = distance_transform_cdt(mask, metric="chessboard")
    return distance


def boundary_counts(
    ground_truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    num_classes: int,
    share: float = BOUNDARY_SHARE,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersection and union of the boundary regions of one image.

    Args:
        ground_truth: (H, W), 0..C-1 or IGNORE_INDEX.
        prediction: (H, W), 0..C-1.
        num_classes: C, with background.
        share: Depth of the regions, as a share of the image's diagonal.

    Returns:
        Pixels of the intersection (C,) and of the union (C,), by class.
    """
    prediction = np.where(ground_truth == IGNORE_INDEX, IGNORE_INDEX, prediction)
    height, width = ground_truth.shape
    depth = boundary_distance_px(height, width, share)
    intersection, union = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for class_id in np.union1d(ground_truth, prediction):
        if class_id != IGNORE_INDEX:
            truth = boundary_region(ground_truth == class_id, depth)
            found = boundary_region(prediction == class_id, depth)
            intersection[class_id] = (truth & found).sum()
            union[class_id] = (truth | found).sum()
    return intersection, union


def boundary_unit(
    predict: LabelMapOf,
    records: pa.Table,
    num_classes: int,
    widths_px: Sequence[int],
    boundary_share: float = BOUNDARY_SHARE,
) -> BoundaryResult:
    """Count over one row group of a records table.

    Args:
        predict: From an image RGB (H, W, 3) to its label map (H, W), 0..C-1.
        records: Rows with the columns units.EVALUATION_COLUMNS.
        num_classes: C, with background.
        widths_px: Widths of the trimap bands.
        boundary_share: Depth of the boundary regions, as a share of the image's diagonal.

    Raises:
        RecordError: An image does not decode, or its two label maps cannot be compared; names the image.
    """
    total = BoundaryResult.empty(num_classes, len(widths_px))
    num_skipped = 0
    for record in iter_records(records):
        if record.gt_label_map is None:
            num_skipped += 1
            continue
        prediction = predict(image_of(record))
        with compared(record):
            total += measure(decode_png(record.gt_label_map), prediction, num_classes, widths_px, boundary_share)
    return replace(total, num_skipped=num_skipped)


def measure(
    ground_truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    num_classes: int,
    widths_px: Sequence[int],
    boundary_share: float = BOUNDARY_SHARE,
) -> BoundaryResult:
    """Count one image.

    Args:
        ground_truth: (H, W), 0..C-1 or IGNORE_INDEX.
        prediction: (H, W), 0..C-1.
        num_classes: C, with background.
        widths_px: Widths of the trimap bands.
        boundary_share: Depth of the boundary regions, as a share of the image's diagonal.

    Raises:
        InputError: The maps differ in size, or hold a value outside their range.
    """
    whole = confusion_matrix(ground_truth, prediction, num_classes)
    inside = np.stack(
        [
            confusion_matrix(np.where(band, ground_truth, IGNORE_INDEX), prediction, num_classes)
            for band in bands(ground_truth, widths_px)
        ]
    )
    counts = boundary_counts(ground_truth, prediction, num_classes, boundary_share)
    return BoundaryResult(inside, whole - inside, *counts, 1, 0)


def boundary_summary(result: BoundaryResult, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The metrics as JSON values in percent: mean IoU inside and outside the band of each width, and Boundary IoU.

    A value is None if no pixel, or no pixel of the class, occurs.
    """

    def percent(share: float) -> float | None:
        return None if np.isnan(share) else 100 * float(share)

    boundary_iou = result.boundary_iou
    whole = result.inside[0] + result.outside[0]
    present = boundary_iou[~np.isnan(boundary_iou)]
    return {
        "mean_iou": percent(mean_iou(whole)),
        "inside": [percent(mean_iou(confusion)) for confusion in result.inside],
        "outside": [percent(mean_iou(confusion)) for confusion in result.outside],
        "band_share": [percent(confusion.sum() / max(whole.sum(), 1)) for confusion in result.inside],
        "mean_boundary_iou": percent(present.mean() if len(present) else np.nan),
        "boundary_iou": {name: percent(value) for name, value in zip(class_names, boundary_iou, strict=True)},
        "num_images": result.num_images,
        "num_without_ground_truth": result.num_skipped,
    }
