"""Proposal quality: how well the best candidate of each ground-truth object covers it. No mask of a candidate is drawn.

The figures are those of MCG's benchmark (Pont-Tuset et al., section 5), so published curves compare: the Jaccard index
of an object's best candidate, averaged over objects (instance level) or, with all pixels of a class taken together,
over classes (class level), and the share of objects whose best index reaches a threshold.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from boxsup_dist.data import rle
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import IGNORE_INDEX, Proposals, Record

ALL = sys.maxsize  # the cut that keeps every candidate
CUTS = (100, 500, 1000, 2000, ALL)
THRESHOLDS = (0.5, 0.7, 0.85)
_OBJECTS, _JACCARD, _SHARED, _UNION, _RECALL = 0, 1, 2, 3, 4  # sums of a tally; then one recall a threshold


class Overlaps(NamedTuple):
    """Each object with its best candidate, at each cut; all float64 (K, len(cuts))."""

    jaccard: np.ndarray
    shared_px: np.ndarray
    union_px: np.ndarray


class Objects(NamedTuple):
    """Ground-truth objects of an image."""

    masks: list[np.ndarray]  # K bool (H, W)
    class_ids: np.ndarray  # int32 (K,)
    valid: np.ndarray | None  # bool (H, W), the pixels that count; None: all


def count_pixels(
    proposals: Proposals, masks: Sequence[np.ndarray], valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Shared pixels and pixels of the union of every candidate with every object, both float64 (P, K).

    `masks` are K bool (H, W) arrays; pixels outside `valid`, bool (H, W), count nowhere (VOC's void ones).
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


def jaccard(proposals: Proposals, masks: Sequence[np.ndarray], valid: np.ndarray | None = None) -> np.ndarray:
    """Jaccard index of every candidate with every object, float64 (P, K); arguments as count_pixels.

    An object without a valid pixel has an index of 0.
    """
    shared, union = count_pixels(proposals, masks, valid)
    return shared / np.maximum(union, 1)


def best_overlaps(
    proposals: Proposals, masks: Sequence[np.ndarray], cuts: Sequence[int], valid: np.ndarray | None = None
) -> Overlaps:
    """Every object with its best one of the first n candidates for every n of `cuts`.

    Where there is no candidate, nothing is shared and the union is the object itself.
    """
    shared, union = count_pixels(proposals, masks, valid)
    sizes = [int((mask if valid is None else mask & valid).sum()) for mask in masks]
    shared = np.concatenate([np.zeros((1, len(masks))), shared])
    union = np.concatenate([np.reshape(sizes, (1, -1)), union])
    index = shared / np.maximum(union, 1)
    best = np.stack([index[: min(cut, len(proposals)) + 1].argmax(0) for cut in cuts], 1)
    columns = np.arange(len(masks))[:, None]
    return Overlaps(index[best, columns], shared[best, columns], union[best, columns])


def best_jaccard(
    proposals: Proposals, masks: Sequence[np.ndarray], cuts: Sequence[int], valid: np.ndarray | None = None
) -> np.ndarray:
    """Best Jaccard index of every object among the first n candidates for every n of `cuts`, float64 (K, len(cuts)).

    0 where there is no candidate.
    """
    return best_overlaps(proposals, masks, cuts, valid).jaccard


def recall(best: np.ndarray, threshold: float) -> np.ndarray:
    """Share of objects whose best Jaccard index reaches `threshold`: (K, ...) to (...)."""
    return (best >= threshold).mean(0)


def lone_boxes(boxes_xyxy: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """Boxes that meet no other box of their class, bool (K,): there a class mask inside the box is one object."""
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[None, :, 2:])
    meet = (high > low).all(-1) & (class_ids[:, None] == class_ids[None])
    np.fill_diagonal(meet, False)
    return ~meet.any(1)


def objects_of(record: Record) -> Objects | None:
    """The objects of a record that can be told apart; None if it has no mask.

    With instance masks all that have a pixel but crowds; else what the class mask shows inside boxes that meet no other
    of their class, where it shows anything. VOC's void pixels then count nowhere; COCO's crowds are no void.
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


def tally(best: Overlaps, class_ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Sums over objects that `figures` needs, float64 (C, len(cuts), sums); tallies add up over images."""
    reached = [(best.jaccard >= threshold).astype(np.float64) for threshold in THRESHOLDS]
    values = np.stack([np.ones_like(best.jaccard), *best, *reached], -1)
    out = np.zeros((num_classes, *values.shape[1:]))
    np.add.at(out, class_ids, values)
    return out


def figures(tallied: np.ndarray, num_candidates: np.ndarray, cuts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The quality at each cut, by the cut's name, of a tally over images with so many candidates each.

    A figure is None where there is no object.
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


def distribution(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile and greatest of at least one value."""
    numbers = np.asarray(values, np.float64)
    median, p90, p99, greatest = np.percentile(numbers, (50, 90, 99, 100))
    named = {"mean": numbers.mean(), "median": median, "p90": p90, "p99": p99, "max": greatest}
    return {name: round(float(value), 4) for name, value in named.items()}
