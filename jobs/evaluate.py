"""Evaluate a run's network, exactly, on the actor pool: python -m jobs.evaluate --run-dir R --records T --out DIR.

Test-time options: --scales 0.8 1 1.2 --flip --crf deeplab_vgg --tile-px 513.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import ray

from boxsup_dist.config import PredictionSettings, TrainConfig
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.evaluate import evaluate, to_summary
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.records import voc
from boxsup_dist.records.build import build_records
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.coordinator import make_pool, read_config


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
    num_actors: int = 0
    """Members of the pool; 0: one a GPU, or one a CPU core."""
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    """Test-time options; the default is a plain forward pass."""


class Predictor(NamedTuple):
    """A pool and the weights of the checkpoint that its members shall use."""

    pool: NetworkPool
    weights: ray.ObjectRef
    version: str  # URI of the checkpoint


@contextmanager
def predictor(run_dir: str, checkpoint_uri: str | None, num_actors: int, records: Table) -> Iterator[Predictor]:
    """The pool of a run's network, for records of its classes; ends with the block. InputError if they don't fit."""
    config, uri = load_run(run_dir, checkpoint_uri, num_actors)
    if len(records.classes) != config.network.num_classes:
        raise SettingError(
            "the records are labelled with other classes than the network's",
            file=records.uri,
            field="classes",
            value=len(records.classes),
            expected=str(config.network.num_classes),
        )
    weights = ray.put(dict(checkpoint.load(uri).model))
    pool = make_pool(config)
    try:
        yield Predictor(pool, weights, uri)
    finally:
        pool.close()


def load_run(run_dir: str, checkpoint_uri: str | None, num_actors: int) -> tuple[TrainConfig, str]:
    """A run's configuration, fitted to the running session, and the checkpoint to use. Raises InputError."""
    config = read_config(run_dir)
    resources = replace(config.resources, num_actors=num_actors, gpus_per_actor=0.0)
    size = session.total_cpus(), session.total_gpus()
    resources = resources.resolve(*size)
    resources.check_room(*size, with_training=False)
    return replace(config, resources=resources), checkpoint.newest(checkpoint_uri or run_dir)


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
    storage.write_json(storage.join(storage.absolute(settings.out), "summary.json"), summary)
    for name, value in summary["iou"].items():
        if value is not None:
            print(f"{name:<12} {value:6.2f}")
    print(f"{'mean IoU':<12} {summary['mean_iou']:6.2f}   {summary['num_images']} images")


if __name__ == "__main__":
    run(main)
