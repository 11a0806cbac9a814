"""Proposal quality: how well the best candidate of each ground-truth object covers it.

The metrics are those of MCG's benchmark (Pont-Tuset et al., section 5), so published curves can be compared:

- the Jaccard index of an object's best candidate, averaged over objects (instance level);
- the same with all pixels of a class taken together, averaged over classes (class level);
- recall: the share of objects whose best Jaccard index reaches a threshold.

Pixels are counted per superpixel, so no mask of a candidate is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import IGNORE_INDEX, Proposals, Record

ALL = sys.maxsize  # the cut that keeps every candidate
CUTS = (100, 500, 1000, 2000, ALL)
THRESHOLDS = (0.5, 0.7, 0.85)
_OBJECTS, _JACCARD, _SHARED, _UNION, _RECALL = 0, 1, 2, 3, 4  # the sums of a tally; from 4 on one per threshold


class Overlaps(NamedTuple):
    """Each of K objects with its best candidate, at each cut; all arrays are (K, cuts)."""

    jaccard: NDArray[np.float64]
    shared_px: NDArray[np.float64]
    union_px: NDArray[np.float64]


class Objects(NamedTuple):
    """The K ground-truth objects of an image."""

    masks: list[NDArray[np.bool_]]  # K masks (H, W)
    class_ids: NDArray[np.int32]  # (K,)
    valid: NDArray[np.bool_] | None  # (H, W), the pixels that count; None: all


def count_pixels(
    proposals: Proposals, masks: Sequence[NDArray[np.bool_]], valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count the pixels that every candidate shares with every object, and the pixels of their union.

    Args:
        proposals: The P candidates of an image.
        masks: K objects, (H, W).
        valid: (H, W), the pixels that count; VOC's void pixels do not. None: all pixels count.

    Returns:
        Shared pixels and pixels of the union, both (P, K).
    """
    num_superpixels = proposals.num_superpixels
    counted = np.ones(proposals.superpixels.shape, bool) if valid is None else valid
    parts = [counted, *(mask & counted for mask in masks)]
    counts = [np.bincount(proposals.superpixels[part], minlength=num_superpixels) for part in parts]
    ones = np.ones(len(proposals.indices))
    membership = scipy.sparse.csr_matrix(
        (ones, proposals.indices.astype(np.int64), proposals.indptr), (len(proposals), num_superpixels)
    )
    sums = membership @ np.stack(counts, 1).astype(np.float64)
    shared = sums[:, 1:]
    union = sums[:, :1] + np.array([int(part.sum()) for part in parts[1:]]) - shared
    return shared, union


def best_overlaps(
    proposals: Proposals,
    masks: Sequence[NDArray[np.bool_]],
    cuts: Sequence[int],
    valid: NDArray[np.bool_] | None = None,
) -> Overlaps:
    """Compare every object with its best candidate among the first n, for every n of `cuts`.

    Without a candidate nothing is shared and the union is the object itself. An object without a valid pixel has a
    Jaccard index of 0. The other arguments are those of `count_pixels`.
    """
    shared, union = count_pixels(proposals, masks, valid)
    sizes = [int((mask if valid is None else mask & valid).sum()) for mask in masks]
    shared = np.concatenate([np.zeros((1, len(masks))), shared])
    union = np.concatenate([np.reshape(sizes, (1, -1)), union])
    index = shared / np.maximum(union, 1)
    best = np.stack([index[: min(cut, len(proposals)) + 1].argmax(0) for cut in cuts], 1)
    columns = np.arange(len(masks))[:, None]
    return Overlaps(index[best, columns], shared[best, columns], union[best, columns])


def lone_boxes(boxes_xyxy: NDArray[np.float32], class_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which boxes (K, 4) meet no other box of their class (K,): the class mask inside them is one object."""
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[None, :, 2:])
    meet = (high > low).all(-1) & (class_ids[:, None] == class_ids[None])
    np.fill_diagonal(meet, False)
    lone: NDArray[np.bool_] = ~meet.any(1)
    return lone


def objects_of(record: Record) -> Objects | None:
    """Return the objects of a record whose own pixels are known; None if the record has no mask.

    With instance masks these are all objects that have a pixel, crowds aside. With a class mask alone they are the
    class's pixels inside the boxes that meet no other box of their class. VOC's void pixels do not count; COCO's crowds
    are no void.
    """
    label_map = None if record.gt_label_map is None else decode_png(record.gt_label_map)
    if record.instance_masks is not None:
        masks = [rle.decode(counts, record.height, record.width) for counts in record.instance_masks]
        chosen = np.flatnonzero(np.array([mask.any() for mask in masks], bool) & ~record.crowd)
        valid = None if label_map is None or record.crowd.any() else label_map != IGNORE_INDEX
        return Objects([masks[k] for k in chosen], record.class_ids[chosen], valid)
    if label_map is None:
        return None
    masks, class_ids = [], []
    for k in np.flatnonzero(lone_boxes(record.boxes_xyxy, record.class_ids) & ~record.crowd):
        x0, y0, x1, y1 = pixel_box(record.boxes_xyxy[k], *label_map.shape)
        mask = np.zeros(label_map.shape, bool)
        mask[y0:y1, x0:x1] = label_map[y0:y1, x0:x1] == record.class_ids[k]
        if mask.any():
            masks.append(mask)
            class_ids.append(record.class_ids[k])
    return Objects(masks, np.array(class_ids, np.int32), label_map != IGNORE_INDEX)


def tally(best: Overlaps, class_ids: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """Sum over objects what `metrics` needs.

    Args:
        best: K objects with their best candidates.
        class_ids: (K,).
        num_classes: C, background included.

    Returns:
        Sums (C, cuts, sums) per class; the tallies of several images can be added.
    """
    reached = [(best.jaccard >= threshold).astype(np.float64) for threshold in THRESHOLDS]
    values = np.stack([np.ones_like(best.jaccard), *best, *reached], -1)
    out = np.zeros((num_classes, *values.shape[1:]))
    np.add.at(out, class_ids, values)
    return out


def metrics(
    tallied: NDArray[np.float64], num_candidates: NDArray[np.integer], cuts: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Compute the quality metrics at each cut.

    Args:
        tallied: The sum of the tallies of all images.
        num_candidates: (images,), number of candidates of each image.
        cuts: The cuts of the tallies.

    Returns:
        For each cut, named "all" or by its number: mean num_candidates, mean_jaccard_instance, mean_jaccard_class and
        recall_at_THRESHOLD. A metric is None if there is no object.
    """
    present = tallied[tallied[:, 0, _OBJECTS] > 0]
    with np.errstate(invalid="ignore"):
        total = present.sum(0)
        means = total / total[:, :1]
        by_class = (
            (present[..., _SHARED] / np.maximum(present[..., _UNION], 1)).mean(0) if len(present) else means[:, 0]
        )
    result = {}
    for c, cut in enumerate(cuts):
        found: Mapping[str, float] = {
            "num_candidates": np.minimum(num_candidates, cut).mean() if len(num_candidates) else np.nan,
            "mean_jaccard_instance": means[c, _JACCARD],
            "mean_jaccard_class": by_class[c],
            **{f"recall_at_{t}": means[c, _RECALL + i] for i, t in enumerate(THRESHOLDS)},
        }
        name = "all" if cut == ALL else str(cut)
        result[name] = {key: None if np.isnan(value) else round(float(value), 6) for key, value in found.items()}
    return result


def distribution(values: ArrayLike) -> dict[str, float]:
    """Return the mean, median, 90th and 99th percentile and greatest of at least one value."""
    numbers = np.asarray(values, np.float64)
    median, p90, p99, greatest = np.percentile(numbers, (50, 90, 99, 100))
    named = {"mean": numbers.mean(), "median": median, "p90": p90, "p99": p99, "max": greatest}
    return {name: round(float(value), 4) for name, value in named.items()}
