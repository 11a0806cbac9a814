"""Evaluate a trained network: mean IoU on records with masks, the box score on records with boxes only.

    python -m jobs.evaluate --run-dir R --records T --out DIR
    python -m jobs.evaluate --run-dir R --records T --out DIR --scales 0.8 1 1.2 --flip --crf deeplab_vgg

It measures by the VOC protocol: every image counts once at its own size, void pixels are ignored, and IoU is
accumulated over all images. The result does not depend on the number of processes. Records of which none has a mask
give the box score instead, which is not a mean IoU: see docs/box-score.md. Compare two outputs with jobs.compare.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter, counted
from boxsup_dist.runs.command_line import Checkpoint, NumActors, Prediction, RunDir, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import write_result


@dataclass(frozen=True)
class Settings:
    """Which network, on what."""

    run_dir: RunDir
    out: str
    """Folder or URI of summary.json, confusion.json and confusion-by-image.parquet; not the run directory."""
    records: str | None = None
    """Folder or URI of the records table. Or set --voc-root and --split."""
    voc_root: str | None = None
    """Year folder of a VOC devkit; its records are built in OUT/records."""
    split: str | None = None
    """List of this devkit, such as val."""
    checkpoint: Checkpoint = None
    num_actors: NumActors = None
    prediction: Prediction = field(default_factory=PredictionSettings)


def _open_records(settings: Settings) -> Table | None:
    """The records table; None if it has to be built from a devkit first."""
    if (settings.records is None) == (settings.voc_root is None):
        raise SettingError("set either records, or voc_root and split", field="records", value=settings.records)
    if settings.records is not None:
        return open_table(settings.records, "records")
    if settings.voc_root is None or settings.split is None:
        raise SettingError("voc_root needs a split", field="split", expected="a list such as val")
    return None


def _build_records(settings: Settings) -> Table:
    from boxsup_dist.records import voc
    from boxsup_dist.records.build import build_records

    assert settings.voc_root is not None and settings.split is not None
    return build_records(storage.join(settings.out, "records"), voc.open_splits(settings.voc_root, settings.split))


def main(settings: Settings) -> None:
    """Evaluate, write OUT/summary.json and print the IoU or box score of every class."""
    settings.prediction.check()
    read_config(settings.run_dir)
    if storage.exists(RunFiles(settings.out).config):
        problem, expected = "the output would replace files of a run", "another folder than a run directory"
        raise SettingError(problem, field="out", value=settings.out, expected=expected)
    records = _open_records(settings)
    from boxsup_dist.distributed import session
    from boxsup_dist.evaluation.boxes import BoxResult, box_lines, box_summary
    from boxsup_dist.evaluation.evaluate import evaluate, evaluate_boxes, to_summary
    from boxsup_dist.evaluation.units import UnitResult
    from boxsup_dist.runs.evaluated import keep_matrices
    from boxsup_dist.runs.inputs import evaluates_boxes
    from boxsup_dist.runs.networks import predictor

    started = time.monotonic()
    session.start()
    records = records or _build_records(settings)
    has_boxes_only = evaluates_boxes(records)
    groups = records.row_groups()
    opened = predictor(settings.run_dir, settings.checkpoint, settings.num_actors, records)
    with opened as found, ProgressMeter("evaluate", len(groups)) as meter:
        common: dict[str, Any] = {
            "weights": found.weights,
            "version": found.version,
            "num_classes": len(records.classes),
            "settings": settings.prediction,
            "on_progress": meter.advance_to([group.num_rows for group in groups]),
        }
        result: BoxResult | UnitResult
        if has_boxes_only:
            result = evaluate_boxes(found.pool, records, **common)
            measured, lines = box_summary(result, records.classes), box_lines(result, records.classes)
        else:
            result = evaluate(found.pool, records, **common)
            measured = to_summary(result, records.classes)
            keep_matrices(settings.out, result, records.classes)
            lines = _iou_lines(measured)
    summary = {
        **measured,
        "checkpoint": found.version,
        "records": records.uri,
        "prediction": asdict(settings.prediction),
        "seconds": time.monotonic() - started,
    }
    if result.is_all_background:
        summary["warnings"] = ["every pixel is predicted as background: is the network trained to its end?"]
        lines += [f"warning: {text}" for text in summary["warnings"]]
    write_result(settings.out, summary, lines)


def _iou_lines(measured: Mapping[str, Any]) -> list[str]:
    lines = [f"{name:<12} {value:6.2f}" for name, value in measured["iou"].items() if value is not None]
    images = f"{counted(measured['num_images'], 'image')} with ground truth"
    return [*lines, f"{'mean IoU':<12} {measured['mean_iou']:6.2f}   {images}"]


if __name__ == "__main__":
    run(main)
