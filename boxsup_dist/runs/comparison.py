"""What the figures that compare finished runs show: from the run directories and the tables they were trained on.

Label maps are painted as the training saw them (data/painting). Predictions are made here, image by image, with the
newest checkpoint of each run. Epochs count from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.config import TrainConfig
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import open_labels
from boxsup_dist.data.painting import painter
from boxsup_dist.data.palette import class_palette
from boxsup_dist.data.schema import Record, iter_records
from boxsup_dist.data.sources import Unit
from boxsup_dist.data.tables import RowGroup, Table
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.evaluation.confusion import read_confusion
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.reporting.overlay import overlay
from boxsup_dist.runs.examples import epochs_to_show
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.inputs import Inputs, open_inputs
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles

Panels = list[NDArray[np.uint8] | None]
Grid = tuple[list[str], list[Panels]]
"""Titles of the columns, and the panels of each image: RGB pictures (H, W, 3) and label maps (H, W)."""


@dataclass(frozen=True)
class FinishedRun:
    """A run directory and the name of the run in figures."""

    name: str
    run_dir: str
    config: TrainConfig

    @cached_property
    def inputs(self) -> Inputs:
        """Its tables, opened and checked."""
        return open_inputs(self.config)

    @property
    def files(self) -> RunFiles:
        """URIs of its files."""
        return RunFiles(self.run_dir)

    @property
    def history(self) -> list[dict[str, Any]]:
        """What is known of each epoch, in order, as figures take it: HistoryEntry.to_dict."""
        return [entry.to_dict() for entry in read_history(self.run_dir).values()]

    @property
    def iou(self) -> dict[str, float | None] | None:
        """IoU in percent by class of the last evaluation; None without one."""
        return next((row["iou"] for row in reversed(self.history) if row.get("iou")), None)

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """Confusion matrix (C, C) of the last evaluation; None for a run that was never evaluated."""
        found = read_confusion(self.files.confusion)
        return None if found is None else found.confusion


def open_runs(run_dirs: Sequence[str]) -> list[FinishedRun]:
    """The runs in order, named by their supervision if it differs from run to run, else by their folders.

    Raises:
        InputError: A directory has no config.json, no run is given, or one is given twice.
    """
    if not run_dirs:
        raise SettingError("no run to draw", field="run_dirs", expected="one run directory or more")
    uris = [storage.absolute(uri) for uri in run_dirs]
    configs = [read_config(uri) for uri in uris]
    choices = [[config.supervision for config in configs], [uri.rpartition("/")[2] for uri in uris], uris]
    names = next((choice for choice in choices if len(set(choice)) == len(choice)), None)
    if names is None:
        raise SettingError("a run is named twice", field="run_dirs", value=list(run_dirs))
    return [FinishedRun(*values) for values in zip(names, uris, configs, strict=True)]


def label_maps_by_epoch(run: FinishedRun, image_ids: Sequence[str], epochs: Sequence[int] = ()) -> Grid | None:
    """The paper's Figure 3: image, label maps of some epochs, ground truth.

    Args:
        run: The run.
        image_ids: Training images to show.
        epochs: Epochs to show, from 1. () shows some, the first and the last among them.

    Returns:
        The grid; None for a run whose labels never change.

    Raises:
        InputError: An epoch has no labels.
    """
    if not run.inputs.mixture.with_supervision("box"):
        return None
    shown = list(epochs) or epochs_to_show(run.config.optimizer.epochs)
    found = _find_training_images(run, image_ids)
    rows = [
        [_picture(record), *(_label_map(run, unit, record, epoch) for epoch in shown), _ground_truth(run, record)]
        for unit, record in found.values()
    ]
    return ["image", *(f"epoch {epoch}" for epoch in shown), "ground truth"], rows


def labels_and_prediction(run: FinishedRun, image_ids: Sequence[str], epochs: Sequence[int] = ()) -> Grid | None:
    """BoxSup in one picture: training image with its boxes, label maps of some epochs, the network's prediction.

    None for a run whose labels never change. InputError for an epoch without labels, or without a checkpoint.
    """
    if not run.inputs.mixture.with_supervision("box"):
        return None
    shown = list(epochs) or epochs_to_show(run.config.optimizer.epochs)
    network = checkpoint.load_network(checkpoint.newest(run.run_dir))
    colours = class_palette(run.inputs.class_names)
    rows: list[Panels] = []
    for unit, record in _find_training_images(run, image_ids).values():
        image = _picture(record)
        prediction = predict_log_probs(network, image).argmax(0).astype(np.uint8)
        maps = [_label_map(run, unit, record, epoch) for epoch in shown]
        boxed = overlay(image, None, colours, boxes=record.boxes_xyxy, box_classes=record.class_ids)
        rows.append([boxed, *maps, prediction])
    return ["image and boxes", *(f"labels, epoch {epoch}" for epoch in shown), "prediction"], rows


def label_maps_by_run(runs: Sequence[FinishedRun], image_ids: Sequence[str]) -> Grid:
    """The paper's Figure 2: image, its label map in the last epoch of every run, ground truth.

    A run that does not train on an image has an empty panel.

    Raises:
        InputError: No run trains on one of the images.
    """
    found = [_find_training_images(run, image_ids) for run in runs]
    rows = []
    for image_id in image_ids:
        where = [by_id.get(image_id) for by_id in found]
        if not any(where):
            raise InputError("no run trains on such an image", field="image_ids", value=image_id)
        maps: Panels = [
            None if place is None else _label_map(run, *place, run.config.optimizer.epochs)
            for run, place in zip(runs, where, strict=True)
        ]
        run, (_, record) = next((run, place) for run, place in zip(runs, where, strict=True) if place is not None)
        rows.append([_picture(record), *maps, _ground_truth(run, record)])
    return ["image", *(run.name for run in runs), "ground truth"], rows


def predictions_by_run(runs: Sequence[FinishedRun], image_ids: Sequence[str]) -> Grid:
    """The paper's Figures 5 and 6: validation image, prediction of every run, ground truth.

    Raises:
        InputError: The runs have different classes, a run has no checkpoint, or the validation records of the first run
            lack an image.
    """
    records = find_records(_val_records(runs[0]), image_ids)
    rows: list[Panels] = [[_picture(record)] for record in records.values()]
    for run in runs:
        names, expected = run.inputs.class_names, runs[0].inputs.class_names
        if names != expected:
            raise InputError(
                f"the networks of the runs have different classes: compare runs of the classes of {runs[0].run_dir}",
                file=run.run_dir,
                field="classes",
                value=names,
                expected=str(expected),
            )
        network = checkpoint.load_network(checkpoint.newest(run.run_dir))
        for row, record in zip(rows, records.values(), strict=True):
            row.append(predict_log_probs(network, _picture(record)).argmax(0).astype(np.uint8))
    for row, record in zip(rows, records.values(), strict=True):
        row.append(decode_png(record.gt_label_map) if record.gt_label_map else None)
    return ["image", *(run.name for run in runs), "ground truth"], rows


def training_examples(run: FinishedRun, count: int) -> list[str]:
    """image_id of up to `count` training images with boxes, spread over all units of the run."""
    units = run.inputs.mixture.units
    found: dict[str, None] = {}
    for start in np.linspace(0, len(units), count, endpoint=False).astype(int).tolist():
        # A unit may have none: another source has its images too, or they have no box.
        following = (image_id for unit in units[start:] for image_id in _with_boxes(unit) if image_id not in found)
        image_id = next(following, None)
        if image_id is not None:
            found[image_id] = None
    return list(found)


def _with_boxes(unit: Unit) -> list[str]:
    rows = unit.source.records.read(unit.where, ("image_id", "class_ids")).to_pylist()
    return [rows[row]["image_id"] for row in unit.rows if rows[row]["class_ids"]]


def validation_examples(run: FinishedRun, count: int) -> list[str]:
    """image_id of some validation images, spread over the table."""
    records = _val_records(run)
    ids = [row for where in records.row_groups() for row in records.read(where, ("image_id",))["image_id"].to_pylist()]
    return [ids[i] for i in sorted(set(np.linspace(0, len(ids) - 1, count).round().astype(int).tolist()))]


def find_records(records: Table, image_ids: Sequence[str]) -> dict[str, Record]:
    """Whole records by image_id, in the order of `image_ids`.

    Raises:
        InputError: The table lacks one of them.
    """
    found: dict[str, Record] = {}
    for where in records.row_groups():
        found |= {record.image_id: record for record in _rows(records, where, image_ids)}
    _check_found(image_ids, found, records.uri)
    return {image_id: found[image_id] for image_id in image_ids}


def _val_records(run: FinishedRun) -> Table:
    if run.inputs.val_records is None:
        raise InputError("the run has no validation records", file=run.run_dir, field="val_records")
    return run.inputs.val_records


def _find_training_images(run: FinishedRun, image_ids: Sequence[str]) -> dict[str, tuple[int, Record]]:
    """Unit index and record of those images that the run trains on, in the order of `image_ids`."""
    found = {}
    for index, unit in enumerate(run.inputs.mixture.units):
        for record in _rows(unit.source.records, unit.where, image_ids, unit.rows):
            found[record.image_id] = (index, record)
    return {image_id: found[image_id] for image_id in image_ids if image_id in found}


def _rows(records: Table, where: RowGroup, image_ids: Sequence[str], rows: Sequence[int] | None = None) -> list[Record]:
    """Records of a row group with one of these ids. The other columns are read only if there is one."""
    ids = records.read(where, ("image_id",))["image_id"].to_pylist()
    chosen = [row for row in (range(len(ids)) if rows is None else rows) if ids[row] in image_ids]
    return list(iter_records(records.read(where).take(chosen))) if chosen else []


def _check_found(image_ids: Sequence[str], found: Mapping[str, Any], uri: str) -> None:
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        problem = f"the table has no image {', '.join(missing)}"
        raise InputError(problem, file=uri, field="image_ids", value=list(image_ids), expected="image ids of the table")


def _picture(record: Record) -> NDArray[np.uint8]:
    assert record.image is not None
    return decode_image(record.image)


def _label_map(run: FinishedRun, unit_index: int, record: Record, epoch: int) -> NDArray[np.uint8]:
    unit = run.inputs.mixture.units[unit_index]
    segments = {}
    if unit.source.supervision == "box":
        segments = open_labels(run.files.labels(epoch)).segments(unit_index)
    return painter(unit, segments, run.inputs.mixture.assignment)(record)


def _ground_truth(run: FinishedRun, record: Record) -> NDArray[np.uint8] | None:
    """Ground truth of a training image, if the run may look at it."""
    return decode_png(record.gt_label_map) if record.gt_label_map and run.config.measure_labels else None
