"""Export the label maps that an epoch of a run trained on: python -m jobs.export_labels --run-dir R --out DIR."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from boxsup_dist.data.labels import read_labels
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed import session
from boxsup_dist.distributed.ordered import map_units
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.export.coco import CocoImage, coco_image_id, write_coco
from boxsup_dist.export.files import keep_identity
from boxsup_dist.export.labels import Undecided, export_unit
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import run
from boxsup_dist.runs.inputs import open_inputs
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import key_lines, write_result


@dataclass(frozen=True)
class Settings:
    """Label maps of the box-supervised records as palette PNGs, and each box's segment with why it was chosen."""

    run_dir: str
    """Run directory of a training with box supervision."""
    out: str
    """Folder or URI: label_maps/IMAGE_ID.png, coco.json, summary.json."""
    epoch: int | None = None
    """Epoch whose labels to export, counted from 1. Not set: the newest epoch that has labels."""
    undecided: Undecided = "ignore"
    """ignore: label maps as trained on, doubtful pixels 255; decided: those pixels as they were chosen."""


def export_labels(settings: Settings) -> dict[str, Any]:
    """Export; returns the summary that it leaves in OUT/summary.json. Raises InputError."""
    started = time.monotonic()
    run_dir, out = storage.absolute(settings.run_dir), storage.absolute(settings.out)
    config = read_config(run_dir)
    files = RunFiles(run_dir)
    epoch = _choose_epoch(files, settings.epoch)
    inputs = open_inputs(config)
    mixture = inputs.mixture
    indices = mixture.with_supervision("box")
    if not indices:
        raise SettingError("only box supervision has labels", field="supervision", value=config.supervision)
    _check_ids(mixture, indices)
    labels = read_labels(files.labels(epoch))
    keep_identity(out, {"labels": files.labels(epoch), "undecided": settings.undecided})
    session.start()
    parts = map_units(export_unit, indices, mixture=mixture, labels=labels, undecided=settings.undecided, out=out)
    num_images = 0

    def images() -> Iterator[CocoImage]:
        nonlocal num_images
        with ProgressMeter("export labels", len(indices)) as meter:
            for part in parts:
                num_images += len(part)
                meter.advance(len(part))
                yield from part

    num_boxes = write_coco(storage.join(out, "coco.json"), images(), inputs.class_names)
    summary = {
        "run_dir": run_dir,
        "epoch": epoch,
        "undecided": settings.undecided,
        "num_images": num_images,
        "num_boxes": num_boxes,
        "seconds": round(time.monotonic() - started, 2),
    }
    write_result(out, summary)
    return summary


def _choose_epoch(files: RunFiles, epoch: int | None) -> int:
    epochs = files.epochs_with_labels()
    if not epochs or (epoch is not None and epoch not in epochs):
        raise SettingError(
            "the run has no labels of this epoch",
            file=files.run_dir,
            field="epoch",
            value=epoch,
            expected=f"{min(epochs)} to {max(epochs)}"
            if epochs
            else "a run with box supervision, after its first reassignment",
        )
    return max(epochs) if epoch is None else epoch


def _check_ids(mixture: Mixture, indices: list[int]) -> None:
    """Two records of one id would write one file."""
    seen: set[int | str] = set()
    for index in indices:
        unit = mixture.units[index]
        ids = unit.source.records.read(unit.where, ("image_id",)).column("image_id").to_pylist()
        for image_id in (ids[row] for row in unit.rows):
            if image_id in seen or coco_image_id(image_id) in seen:
                raise InputError("two sources have a record of this name", field="image_id", value=image_id)
            seen |= {image_id, coco_image_id(image_id)}


def main(settings: Settings) -> None:
    """Export and print what was done."""
    for line in key_lines(export_labels(settings)):
        print(line)


if __name__ == "__main__":
    run(main)
