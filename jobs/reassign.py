"""One round of reassignment alone, from a checkpoint: python -m jobs.reassign --run-dir R --out DIR."""

from __future__ import annotations

import time
from dataclasses import dataclass

import ray

from boxsup_dist.assignment.reassign import reassign
from boxsup_dist.data.labels import read_labels, summarise
from boxsup_dist.distributed import session
from boxsup_dist.errors import SettingError
from boxsup_dist.evaluation.evaluate import measure_labels, to_summary
from boxsup_dist.io import storage
from boxsup_dist.model import checkpoint
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.networks import load_run, make_pool
from boxsup_dist.runs.summary import key_lines, write_result


@dataclass(frozen=True)
class Settings:
    """Labels of the epoch that follows a checkpoint, as the run itself would make them."""

    run_dir: str
    """Run directory of a training with box supervision."""
    out: str
    """Folder or URI for labels.parquet and summary.json."""
    checkpoint: str | None = None
    """Checkpoint whose network assigns; by default the run's newest."""
    num_actors: int | None = None
    """Members of the pool. Not set: one per GPU, without GPUs one per CPU core. The labels don't depend on it."""


def main(settings: Settings) -> None:
    """Reassign, write OUT/labels.parquet and OUT/summary.json, and print the figures."""
    session.start()
    config, uri = load_run(settings.run_dir, settings.checkpoint, settings.num_actors)
    inputs = open_inputs(config)
    mixture = inputs.mixture
    sizes = [len(mixture.units[i].rows) for i in mixture.with_supervision("box")]
    if not sizes:
        raise SettingError("only box supervision assigns", field="supervision", value=config.supervision)
    state = checkpoint.load(uri)
    pool = make_pool(state.network, config.resources)
    started = time.monotonic()
    with ProgressMeter("reassign", len(sizes)) as meter:
        labels = reassign(
            pool,
            mixture,
            weights=ray.put(dict(state.assigning_model)),
            epoch=state.epoch,
            on_progress=lambda done, _: meter.advance(sizes[done - 1]),
        )
    seconds = time.monotonic() - started
    out = storage.absolute(settings.out)
    storage.write_bytes(storage.join(out, "labels.parquet"), labels.to_parquet())
    before = RunFiles(config.run_dir).labels(state.epoch)  # the newest finished epoch
    summary = {
        "epoch": state.epoch + 1,
        "checkpoint": uri,
        "num_boxes": labels.table.num_rows,
        "images_per_s": sum(sizes) / seconds,
        **summarise(labels, read_labels(before) if storage.exists(before) else None),
    }
    if inputs.can_measure_labels:
        result = measure_labels(pool, mixture, labels, num_classes=len(inputs.class_names))
        summary["label_mean_iou"] = to_summary(result, inputs.class_names)["mean_iou"]
    pool.close()
    write_result(out, summary, key_lines(summary))


if __name__ == "__main__":
    run(main)
