"""How good predictions are near object boundaries: trimap bands (the paper's figure 4) and Boundary IoU.

Trimap (Kohli et al. 2009; Kraehenbuehl and Koltun 2011). The contour of a ground truth is its void pixels
(IGNORE_INDEX), which VOC draws around every object, and as VOC does the "difficult" regions that are void altogether;
where a map has no void at all (SBD), the pixels that differ from one of their four neighbours. The band of width w are
the pixels at most w rows and w columns away from the contour: its dilation with a square of 2 w + 1. Each width has a
confusion matrix of the pixels inside its band and one of those outside. Void itself counts nowhere.

Boundary IoU (Cheng et al. 2021), here per class over the whole set, as VOC's IoU is: the pixels of a class at most d
rows and columns from its outside, in ground truth and in prediction, and of these two sets intersection over union,
each summed over the images. d is 2 % of an image's diagonal, rounded, at least 1; the border of the image is outside,
as in the authors' code. Void belongs to no class, whatever is predicted there, so a right prediction has 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import IGNORE_INDEX, iter_records
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.confusion import confusion_matrix
from boxsup_dist.evaluation.units import LabelMapOf, compared, image_of

BOUNDARY_SHARE = 0.02  # of the image's diagonal


@dataclass(frozen=True)
class BoundaryResult:
    """Counts of some images; `+` adds those of other images."""

    inside: np.ndarray  # int64 (W, C, C): confusion matrix inside the band of each of the W widths
    outside: np.ndarray  # int64 (W, C, C)
    intersection: np.ndarray  # int64 (C,): pixels in the boundary regions of ground truth and prediction
    union: np.ndarray  # int64 (C,)
    num_images: int
    num_skipped: int  # without ground truth

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
        """The result of no image."""
        bands = np.zeros((num_widths, num_classes, num_classes), np.int64)
        return cls(bands, bands, np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), 0, 0)

    @property
    def boundary_iou(self) -> np.ndarray:
        """Boundary IoU, float64 (C,), of every class; nan where it is in neither map."""
        return np.divide(self.intersection, self.union, out=np.full(len(self.union), np.nan), where=self.union > 0)


def check_widths(widths_px: Sequence[int], boundary_share: float = BOUNDARY_SHARE) -> None:
    """SettingError on widths or a share of the diagonal that can't work."""
    if not widths_px or any(width < 1 for width in widths_px):
        raise SettingError("no band", field="widths", value=tuple(widths_px), expected="one width or more, in px, >= 1")
    if not 0 < boundary_share < 1:
        raise SettingError("no boundary", field="boundary_share", value=boundary_share, expected="0 < share < 1")


def contour(ground_truth: np.ndarray) -> np.ndarray:
    """Contour pixels, bool (H, W), of a label map (H, W): its void or, without any, both sides of every boundary."""
    void = ground_truth == IGNORE_INDEX
    if void.any():
        return void
    found = np.zeros(ground_truth.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = ground_truth[one] != ground_truth[other]
        found[one] |= differs
        found[other] |= differs
    return found


def bands(ground_truth: np.ndarray, widths_px: Sequence[int]) -> np.ndarray:
    """Band of each width, bool (W, H, W'), around the contour of a label map (H, W'); it includes the contour."""
    near = contour(ground_truth)
    if not near.any():
        return np.zeros((len(widths_px), *near.shape), bool)
    distance = _chessboard_distance(~near)
    return np.stack([distance <= width for width in widths_px])


def boundary_distance_px(height: int, width: int, share: float = BOUNDARY_SHARE) -> int:
    """How deep the boundary region of Boundary IoU is in an image of this size."""
    return max(1, round(share * math.hypot(height, width)))


def boundary_region(mask: np.ndarray, depth_px: int) -> np.ndarray:
    """Pixels of a mask, bool (H, W), at most depth_px rows and columns from a pixel outside it or the image."""
    padded = np.pad(mask, 1)
    return mask & (_chessboard_distance(padded)[1:-1, 1:-1] <= depth_px)


def _chessboard_distance(mask: np.ndarray) -> np.ndarray:
    """Rows or columns, whichever are more, from a pixel to the nearest one outside the mask."""
    # Every worker of a run imports this module, and few measure boundaries.
    from scipy.ndimage import distance_transform_cdt

    return distance_transform_cdt(mask, metric="chessboard")


def boundary_counts(
    ground_truth: np.ndarray, prediction: np.ndarray, num_classes: int, share: float = BOUNDARY_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of every class's boundary regions, int64 (C,) each, of one image.

    Ground truth (H, W) is 0..C-1 or IGNORE_INDEX, prediction (H, W) 0..C-1.
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
    """Trimap matrices and Boundary IoU counts over a records row group (units.EVALUATION_COLUMNS).

    `predict` maps an image, uint8 RGB (H, W, 3), to its label map, integers (H, W). RecordError, naming the image,
    where the two maps cannot be compared.
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
    ground_truth: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    widths_px: Sequence[int],
    boundary_share: float = BOUNDARY_SHARE,
) -> BoundaryResult:
    """The counts of one image. InputError as confusion_matrix."""
    whole = confusion_matrix(ground_truth, prediction, num_classes)
    inside = np.stack(
        [
            confusion_matrix(np.where(band, ground_truth, IGNORE_INDEX), prediction, num_classes)
            for band in bands(ground_truth, widths_px)
        ]
    )
    counts = boundary_counts(ground_truth, prediction, num_classes, boundary_share)
    return BoundaryResult(inside, whole - inside, *counts, 1, 0)
