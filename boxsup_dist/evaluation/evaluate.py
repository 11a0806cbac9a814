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
from boxsup_dist.sources import GRANTED_COLUMNS, Mixture, painter
from boxsup_dist.tables import RowGroup, Table

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
    mixture: Mixture,
    labels: Labels | None,
    *,
    num_classes: int,
    on_progress: Progress | None = None,
) -> UnitResult:
    """Confusion matrix of the label maps that training uses against ground truth ("label mIoU").

    Of all sources whose label maps are made from boxes; `labels` are needed where boxes choose segments. Training with
    wssl_em has no label maps to measure: they exist for the moment of a step only.
    """
    chosen = mixture.with_supervision("rectangles", "grabcut", "wssl", "box")
    results = pool.map(
        _measure_unit,
        chosen,
        on_progress=on_progress,
        labels=None if labels is None else [ray.put(labels)],
        mixture=mixture,
        num_classes=num_classes,
    )
    return _total(results, mixture.units[chosen[0]].source.records, num_classes)


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


def _measure_unit(
    network: SegmentationNetwork,
    index: int,
    *,
    labels: list[ray.ObjectRef] | None,
    mixture: Mixture,
    num_classes: int,
) -> UnitResult:
    unit = mixture.units[index]
    segments = {} if labels is None else ray.get(labels[0]).segments(index)
    columns = tuple(dict.fromkeys((*GRANTED_COLUMNS[unit.source.supervision], "gt_label_map")))
    paint = painter(unit, segments, mixture.assignment, decided=True)
    return units.label_unit(paint, unit.source.records.read(unit.where, columns), num_classes)
