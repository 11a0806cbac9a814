"""Evaluate a run's network, exactly, on the actor pool: python -m jobs.evaluate --run-dir R --records T --out DIR.

Test-time options: --scales 0.8 1 1.2 --flip --crf deeplab_vgg --tile-px 513.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.distributed import session
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.evaluate import evaluate, to_summary
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.networks import predictor
from boxsup_dist.runs.summary import write_result


@dataclass(frozen=True)
class Settings:
    """Mean IoU (VOC protocol: void pixels ignored, accumulated over all images) of a checkpoint on records."""

    run_dir: str
    """Run directory of a training."""
    out: str
    """Folder or URI for summary.json."""
    records: str | None = None
    """Records table with ground truth; else give voc_root and split."""
    voc_root: str | None = None
    """VOC devkit; its records are built under OUT/records."""
    split: str | None = None
    """List of that devkit."""
    checkpoint: str | None = None
    """Checkpoint to evaluate; by default the run's newest."""
    num_actors: int | None = None
    """Members of the pool. Not set: one per GPU, without GPUs one per CPU core."""
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    """Test-time options; the default is a plain forward pass."""


def _open_records(settings: Settings) -> Table:
    if (settings.records is None) == (settings.voc_root is None):
        raise SettingError("give either records or voc_root with split", field="records")
    if settings.records is not None:
        return open_table(settings.records, "records")
    if settings.voc_root is None or settings.split is None:
        raise SettingError("voc_root needs a split", field="split", expected="a list such as val")
    return build_records(storage.join(settings.out, "records"), voc.open_splits(settings.voc_root, settings.split))


def main(settings: Settings) -> None:
    """Evaluate, write OUT/summary.json and print the figures."""
    started = time.monotonic()
    settings.prediction.check()
    session.start()
    records = _open_records(settings)
    groups = records.row_groups()
    opened = predictor(settings.run_dir, settings.checkpoint, settings.num_actors, records)
    with opened as found, ProgressMeter("evaluate", len(groups)) as meter:
        result = evaluate(
            found.pool,
            records,
            weights=found.weights,
            version=found.version,
            num_classes=len(records.classes),
            settings=settings.prediction,
            on_progress=lambda done, _: meter.advance(groups[done - 1].num_rows),
        )
    summary = {
        **to_summary(result, records.classes),
        "checkpoint": found.version,
        "records": records.uri,
        "prediction": asdict(settings.prediction),
        "seconds": time.monotonic() - started,
    }
    lines = [f"{name:<12} {value:6.2f}" for name, value in summary["iou"].items() if value is not None]
    lines.append(f"{'mean IoU':<12} {summary['mean_iou']:6.2f}   {summary['num_images']} images")
    write_result(settings.out, summary, lines)


if __name__ == "__main__":
    run(main)
