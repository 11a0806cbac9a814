"""Exact evaluation on the actor pool: of a network on a records table, and of the label maps of a training.

Integer confusion matrices of fixed row groups are added up, so the result is the same for any number of actors. Every
image counts once and at its own size. Members with GPUs only predict; the CRF then runs in tasks on any CPU of the
cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Required, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict, Unpack

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.labels import LabelsTable
from boxsup_dist.data.painting import GRANTED_COLUMNS, both_painter
from boxsup_dist.data.schema import iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.data.tables import Table
from boxsup_dist.distributed.crashes import name_rows
from boxsup_dist.distributed.ordered import Progress
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.distributed.shared import Reference
from boxsup_dist.errors import TableError
from boxsup_dist.evaluation import units
from boxsup_dist.evaluation.boxes import BOX_COLUMNS, BoxResult, box_unit
from boxsup_dist.evaluation.confusion import iou_per_class, mean_iou
from boxsup_dist.evaluation.slices import Slice
from boxsup_dist.evaluation.trimap import BOUNDARY_SHARE, BoundaryResult, boundary_unit, check_widths
from boxsup_dist.evaluation.units import LabelMapOf, LabelResult, ScoresOf, UnitResult
from boxsup_dist.model.crf import CrfSettings, LikelyScores, crf_settings
from boxsup_dist.model.inference import average_log_probs, predict_label_map
from boxsup_dist.model.networks import SegmentationNetwork

R = TypeVar("R")
_Judge = Callable[..., Any]


class Prediction(TypedDict, total=False):
    """Named arguments of every measure of a network: which weights predict, and how."""

    weights: Required[Reference | None]
    """Reference to the network's state dict; None keeps the network of the pool as it is."""

    version: Required[str]
    """Name of `weights`."""

    settings: PredictionSettings
    """Test-time options: scales, mirroring, CRF. Without it: none of them."""

    crf_in_tasks: bool | None
    """Whether the CRF runs in tasks beside the members. None, the default: if the members have GPUs. The result is
    the same."""

    on_progress: Progress | None
    """Called after each row group."""


def evaluate(pool: NetworkPool, records: Table, *, num_classes: int, **prediction: Unpack[Prediction]) -> UnitResult:
    """Confusion matrix of the network's predictions on the records that have ground truth.

    Args:
        pool: Actors that predict.
        records: What to predict; records without ground truth are counted as skipped.
        num_classes: C, with the background.
        prediction: See `Prediction`.

    Raises:
        TableError: No record has ground truth.
        SettingError: `prediction["settings"]` are out of range.
    """
    judge = partial(units.evaluate_unit, num_classes=num_classes)
    return _total(map_label_maps(pool, records, judge, **prediction), records, num_classes)


def evaluate_boxes(
    pool: NetworkPool, records: Table, *, num_classes: int, **prediction: Unpack[Prediction]
) -> BoxResult:
    """Compare the network's predictions with the boxes of the records; masks are not read. See evaluation/boxes.py.

    The arguments are those of `evaluate`.

    Raises:
        TableError: No record has a box.
        SettingError: `prediction["settings"]` are out of range.
    """
    judge = partial(box_unit, num_classes=num_classes)
    results = map_label_maps(pool, records, judge, columns=BOX_COLUMNS, **prediction)
    total = sum(results, BoxResult.empty(num_classes))
    if not total.num_boxes.any():
        raise TableError("no record has a box to compare with", file=records.uri, field="boxes_xyxy")
    return total


def measure_boundaries(
    pool: NetworkPool,
    records: Table,
    *,
    num_classes: int,
    widths_px: Sequence[int],
    boundary_share: float = BOUNDARY_SHARE,
    **prediction: Unpack[Prediction],
) -> BoundaryResult:
    """Trimap matrices and Boundary IoU counts of the network's predictions; see evaluation/trimap.py.

    Args:
        pool: Actors that predict.
        records: What to predict, as in `evaluate`.
        num_classes: C, with the background.
        widths_px: Widths of the band around ground-truth boundaries. Each width has its own result.
        boundary_share: Width of Boundary IoU's band, as a share of the image's diagonal.
        prediction: See `Prediction`.

    Raises:
        TableError: No record has ground truth.
        SettingError: `prediction["settings"]`, `widths_px` or `boundary_share` are out of range.
    """
    check_widths(widths_px, boundary_share)
    judge = partial(boundary_unit, num_classes=num_classes, widths_px=tuple(widths_px), boundary_share=boundary_share)
    results = map_label_maps(pool, records, judge, **prediction)
    total = sum(results, BoundaryResult.empty(num_classes, len(widths_px)))
    _check_any(total.num_images, records)
    return total


def score_crfs(
    pool: NetworkPool,
    records: Table,
    slices: Sequence[Slice],
    candidates: Sequence[CrfSettings],
    *,
    num_classes: int,
    **prediction: Unpack[Prediction],
) -> tuple[UnitResult, list[UnitResult]]:
    """Confusion matrices without a CRF and with each candidate CRF, from one prediction of each image.

    Args:
        pool: Actors that predict.
        records: The table of the slices.
        slices: What to predict.
        candidates: Settings of the CRFs to compare.
        num_classes: C, with the background.
        prediction: See `Prediction`; the CRF of its settings is not used.

    Returns:
        The result without a CRF, and that of each candidate.

    Raises:
        TableError: No record has ground truth.
        SettingError: `prediction["settings"]` are out of range.
    """
    judge = partial(units.crf_unit, candidates=tuple(candidates), num_classes=num_classes)
    found = _map_scores(pool, records, slices, judge, columns=units.EVALUATION_COLUMNS, **prediction)
    totals = [UnitResult.empty(num_classes) for _ in range(len(candidates) + 1)]
    for results in found:
        totals = [total + result for total, result in zip(totals, results, strict=True)]
    _check_any(totals[0].num_images, records)
    return totals[0], totals[1:]


def measure_labels(
    pool: NetworkPool,
    mixture: Mixture,
    labels: LabelsTable | None,
    *,
    num_classes: int,
    on_progress: Progress | None = None,
) -> LabelResult:
    """Confusion matrices of the label maps that training uses against ground truth ("label mIoU").

    Measures the training images of the sources of `Mixture.with_measurable_labels`. The members of the pool paint;
    their networks are not used.

    Args:
        pool: The pool of the training, whose members hold the CPUs.
        mixture: The sources.
        labels: The labels of the epoch; None if no source is supervised by boxes that choose segments.
        num_classes: C, with the background.
        on_progress: Called after each unit.

    Raises:
        TableError: No record has ground truth.
    """
    chosen = mixture.with_measurable_labels()
    options: dict[str, Any] = {"labels": labels, "mixture": mixture, "num_classes": num_classes}
    lost = name_rows(mixture.place)
    results = pool.map(_measure_unit, chosen, on_progress=on_progress, on_lost=lost, **options)
    total = sum(results, LabelResult.empty(num_classes))
    _check_any(total.decided.num_images, mixture.units[chosen[0]].source.records)
    return total


def to_summary(result: UnitResult, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The metrics as JSON values: mean IoU and IoU per class in percent (None: the class does not occur), images."""
    per_class = 100 * iou_per_class(result.confusion)
    return {
        "mean_iou": 100 * mean_iou(result.confusion),
        "iou": {name: None if np.isnan(v) else float(v) for name, v in zip(class_names, per_class, strict=True)},
        "num_images": result.num_images,
        "num_without_ground_truth": result.num_skipped,
    }


def _total(results: Iterable[UnitResult], records: Table, num_classes: int) -> UnitResult:
    total = sum(results, UnitResult.empty(num_classes))
    _check_any(total.num_images, records)
    return total


def _check_any(num_images: int, records: Table) -> None:
    if num_images == 0:
        raise TableError("no record has ground truth to compare with", file=records.uri, field="gt_label_map")


def map_label_maps(
    pool: NetworkPool,
    records: Table,
    judge: Callable[[LabelMapOf, pa.Table], R],
    *,
    columns: Sequence[str] = units.EVALUATION_COLUMNS,
    **prediction: Unpack[Prediction],
) -> Iterator[R]:
    """judge(predictor of label maps, rows with `columns`) of every row group, in their order."""
    settings = prediction.get("settings", PredictionSettings())
    settings.check()
    slices = [Slice(where) for where in records.row_groups()]
    crf = None if settings.crf is None else crf_settings(settings.crf)  # refuses bad ones before the work begins
    if crf is not None and _in_tasks(pool, prediction):
        return _map_scores(
            pool, records, slices, partial(units.with_crf, judge=judge, crf=crf), columns=columns, **prediction
        )
    return _map(
        pool, records, slices, partial(_judge_rows, predict_label_map), prediction, judge=judge, columns=columns
    )


def _map_scores(
    pool: NetworkPool,
    records: Table,
    slices: Sequence[Slice],
    judge: Callable[[ScoresOf, pa.Table], R],
    *,
    columns: Sequence[str],
    **prediction: Unpack[Prediction],
) -> Iterator[R]:
    """judge(scores of an image, rows) of every slice, in their order; by the members, or in tasks after them."""
    prediction.get("settings", PredictionSettings()).check()
    given: dict[str, Any] = {"judge": judge, "columns": columns}
    if not _in_tasks(pool, prediction):
        return _map(pool, records, slices, partial(_judge_rows, _likely_scores), prediction, **given)
    # One row group at a time: its scores are large.
    in_tasks: dict[str, Any] = {"then": _judge_given, "then_in_tasks": True, "in_chunks": False}
    return _map(pool, records, slices, _scores, prediction, **given, **in_tasks)


def _in_tasks(pool: NetworkPool, prediction: Prediction) -> bool:
    chosen = prediction.get("crf_in_tasks")
    return pool.has_gpus if chosen is None else chosen


def _map(
    pool: NetworkPool,
    records: Table,
    slices: Sequence[Slice],
    function: _Judge,
    prediction: Prediction,
    **options: Any,
) -> Iterator[Any]:
    """`pool.map` of a function of this module; a row group that ends its process is named by its images."""
    return pool.map(
        function,
        slices,
        records=records,
        weights=prediction["weights"],
        version=prediction["version"],
        settings=prediction.get("settings", PredictionSettings()),
        on_progress=prediction.get("on_progress"),
        on_lost=name_rows(lambda unit: (records, unit.where)),
        **options,
    )


def _read(records: Table, unit: Slice, columns: Sequence[str]) -> pa.Table:
    rows = records.read(unit.where, columns)
    return rows if unit.rows is None else rows.take(list(unit.rows))


def _judge_rows(
    predict: Callable[[SegmentationNetwork, NDArray[np.uint8], PredictionSettings], Any],
    network: SegmentationNetwork,
    unit: Slice,
    *,
    records: Table,
    settings: PredictionSettings,
    judge: _Judge,
    columns: Sequence[str],
) -> Any:
    return judge(lambda image: predict(network, image, settings), _read(records, unit, columns))


def _scores(
    network: SegmentationNetwork,
    unit: Slice,
    *,
    records: Table,
    settings: PredictionSettings,
    judge: _Judge,
    columns: Sequence[str],
) -> list[LikelyScores]:
    """The scores of a slice's images; of those with ground truth if it is read."""
    found = iter_records(_read(records, unit, columns))
    given = [record for record in found if "gt_label_map" not in columns or record.gt_label_map is not None]
    return [_likely_scores(network, units.image_of(record), settings) for record in given]


def _judge_given(
    slices: Sequence[Slice],
    scores: Sequence[list[LikelyScores]],
    *,
    records: Table,
    settings: PredictionSettings,
    judge: Callable[[ScoresOf, pa.Table], R],
    columns: Sequence[str],
) -> list[R]:
    """In a task: read the rows again, which moves fewer bytes than sending their images."""
    return [
        judge(units.in_turn(found), _read(records, unit, columns)) for unit, found in zip(slices, scores, strict=True)
    ]


def _likely_scores(
    network: SegmentationNetwork, image: NDArray[np.uint8], settings: PredictionSettings
) -> LikelyScores:
    return LikelyScores.of(average_log_probs(network, image, settings))


def _measure_unit(
    network: SegmentationNetwork,
    index: int,
    *,
    labels: LabelsTable | None,
    mixture: Mixture,
    num_classes: int,
) -> LabelResult:
    unit = mixture.units[index]
    segments = {} if labels is None else labels.segments(index)
    columns = tuple(dict.fromkeys((*GRANTED_COLUMNS[unit.source.supervision], "gt_label_map")))
    paint = both_painter(unit, segments, mixture.assignment)
    return units.label_unit(paint, unit.trained(unit.source.records.read(unit.where, columns)), num_classes)
