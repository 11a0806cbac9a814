"""Exact evaluation on the actor pool: of a network on a records table, and of training label maps.

Integer confusion matrices of fixed row groups are added up, so the result is the same for any number of actors; every
image counts once and at its own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import ray

from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import TableError
from boxsup_dist.evaluation import units
from boxsup_dist.evaluation.confusion import iou_per_class, mean_iou
from boxsup_dist.evaluation.units import UnitResult
from boxsup_dist.labels import Labels
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.tables import RowGroup, Table, check_paired

Progress = Callable[[int, int], None]


def evaluate(
    pool: NetworkPool,
    records: Table,
    *,
    weights: ray.ObjectRef | None,
    version: str,
    num_classes: int,
    on_progress: Progress | None = None,
) -> UnitResult:
    """Confusion matrix of the network's predictions. TableError if no record has ground truth."""
    results = pool.map(
        _evaluate_row_group,
        records.row_groups(),
        weights=weights,
        version=version,
        on_progress=on_progress,
        records=records,
        num_classes=num_classes,
    )
    return _total(results, records, num_classes)


def measure_labels(
    pool: NetworkPool,
    records: Table,
    proposals: Table | None,
    labels: Labels | None,
    *,
    clip_to_box: bool,
    num_classes: int,
    on_progress: Progress | None = None,
) -> UnitResult:
    """Confusion matrix of the label maps that training uses ("label mIoU"), rectangles where `labels` is None."""
    if proposals is not None:
        check_paired(records, proposals)
    results = pool.map(
        _measure_row_group,
        list(enumerate(records.row_groups())),
        on_progress=on_progress,
        records=records,
        proposals=proposals,
        labels=None if labels is None else [ray.put(labels)],
        clip_to_box=clip_to_box,
        num_classes=num_classes,
    )
    return _total(results, records, num_classes)


def to_summary(result: UnitResult, class_names: tuple[str, ...]) -> dict:
    """JSON-ready figures: mean IoU and IoU per class in percent (None: the class does not occur), images."""
    per_class = 100 * iou_per_class(result.confusion)
    return {
        "mean_iou": 100 * mean_iou(result.confusion),
        "iou": {name: None if np.isnan(v) else float(v) for name, v in zip(class_names, per_class, strict=True)},
        "num_images": result.num_images,
        "num_without_ground_truth": result.num_skipped,
    }


def _total(results: Iterable[UnitResult], records: Table, num_classes: int) -> UnitResult:
    total = sum(results, UnitResult.empty(num_classes))
    if total.num_images == 0:
        raise TableError("no record has ground truth to compare with", file=records.uri, field="gt_label_map")
    return total


def _evaluate_row_group(
    network: SegmentationNetwork, where: RowGroup, *, records: Table, num_classes: int
) -> UnitResult:
    def predict(image: np.ndarray) -> np.ndarray:
        return predict_log_probs(network, image, network.device).argmax(0)

    return units.evaluate_unit(predict, records.read(where, units.EVALUATION_COLUMNS), num_classes)


def _measure_row_group(
    network: SegmentationNetwork,
    unit: tuple[int, RowGroup],
    *,
    records: Table,
    proposals: Table | None,
    labels: list[ray.ObjectRef] | None,
    clip_to_box: bool,
    num_classes: int,
) -> UnitResult:
    index, where = unit
    paint = units.rectangles_painter()
    if labels is not None:
        assert proposals is not None
        chosen: Labels = ray.get(labels[0])
        maps = proposals.read(where, units.SUPERPIXEL_COLUMNS)
        paint = units.segments_painter(chosen.segments(index), maps, clip_to_box=clip_to_box)
    return units.label_unit(paint, records.read(where, units.LABEL_COLUMNS), num_classes)
