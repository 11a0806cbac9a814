"""Export the masks that an epoch trained on: as PNGs with a legend, and in the formats of annotation tools.

    python -m jobs.export_labels --run-dir R --out DIR
    python -m jobs.export_labels --run-dir R --out DIR --formats coco yolo labelme cvat

It covers the images with box supervision. Every box gives one object, with the ids and file names of the annotations
that the boxes came from. coco.json also has why each segment was chosen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boxsup_dist.data.input_names import join_input_names, read_input_names
from boxsup_dist.data.labels import open_labels
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.export.files import keep_identity
from boxsup_dist.export.formats import Format, check_file_names, check_formats, write_formats
from boxsup_dist.export.labels import Undecided
from boxsup_dist.export.legend import write_legend
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.runs.command_line import RunDir, run
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import key_lines, write_result

if TYPE_CHECKING:
    from boxsup_dist.data.sources import Mixture
    from boxsup_dist.export.coco import CocoImage


@dataclass(frozen=True)
class Settings:
    """Which run and epoch, and where to write."""

    run_dir: RunDir
    out: str
    """Folder or URI of label_maps/IMAGE_ID.png, legend.png, the formats and summary.json."""
    epoch: int | None = None
    """Epoch whose labels to export; the first is 1. Default: the last that has labels."""
    formats: tuple[Format, ...] = ("coco",)
    """Formats to write. coco: coco.json with run lengths. coco_polygons: coco_polygons.json. yolo: a folder yolo.
    labelme: a folder labelme. cvat: cvat.xml, CVAT for images 1.1."""
    coco_annotations: tuple[str, ...] = ()
    """COCO annotation files of the same images: the outputs take their image ids, file names and category ids. Not
    set: those of the annotations that the records were built from. Where these have none: the numbers in COCO's file
    names, for other images 1, 2, 3, ...; class ids."""
    undecided: Undecided = "ignore"
    """ignore: label maps as trained on, with 255 for undecided pixels. decided: these pixels get the chosen class."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        check_formats(self.formats)


def export_labels(settings: Settings) -> dict[str, Any]:
    """Export and write OUT/summary.json.

    Returns:
        The summary.

    Raises:
        InputError: There is no such run or epoch, or two images would be written to one file.
    """
    settings.check()
    config = read_config(settings.run_dir)
    from boxsup_dist.distributed import session
    from boxsup_dist.distributed.crashes import name_rows
    from boxsup_dist.distributed.ordered import map_units
    from boxsup_dist.export.labels import export_unit
    from boxsup_dist.runs.coco_names import coco_names
    from boxsup_dist.runs.inputs import open_inputs

    started = time.monotonic()
    run_dir, out = storage.absolute(settings.run_dir), storage.absolute(settings.out)
    files = RunFiles(run_dir)
    epoch = _choose_epoch(files, settings.epoch)
    inputs = open_inputs(config)
    mixture = inputs.mixture
    indices = _units_of_boxes(mixture)
    ids = _image_ids(mixture, indices)
    tables = dict.fromkeys(mixture.units[index].source.records.uri for index in indices)
    kept = join_input_names([read_input_names(table) for table in tables])
    names = coco_names(ids, inputs.class_names, settings.coco_annotations, have_source=True, kept=kept)
    check_file_names(settings.formats, names)
    labels = open_labels(files.labels(epoch))
    keep_identity(out, {"labels": files.labels(epoch), "undecided": settings.undecided})
    session.start()
    parts = map_units(
        export_unit,
        indices,
        on_lost=name_rows(mixture.place),
        mixture=mixture,
        labels=labels,
        undecided=settings.undecided,
        out=out,
    )
    num_images = 0

    def images() -> Iterator[CocoImage]:
        nonlocal num_images
        with ProgressMeter("export labels", len(indices)) as meter:
            for part in parts:
                num_images += len(part)
                meter.advance(len(part))
                yield from part

    num_boxes = write_formats(out, settings.formats, images(), names)
    write_legend(out, inputs.class_names)
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
    """The epoch, if it has labels. None: the newest epoch that has labels."""
    epochs = files.epochs_with_labels()
    if not epochs or (epoch is not None and epoch not in epochs):
        none = "a run with box supervision, after its first reassignment"
        raise SettingError(
            "the run has no labels of this epoch",
            file=files.run_dir,
            field="epoch",
            value=epoch,
            expected=f"{min(epochs)} to {max(epochs)}" if epochs else none,
        )
    return max(epochs) if epoch is None else epoch


def _units_of_boxes(mixture: Mixture) -> list[int]:
    """Units of the sources with box supervision.

    Raises:
        SettingError: There is none.
    """
    indices = mixture.with_supervision("box")
    if not indices:
        expected = "a run with a source of box supervision"
        raise SettingError("the run has no labels to export", field="supervision", expected=expected)
    return indices


def _image_ids(mixture: Mixture, indices: list[int]) -> list[str]:
    """Image ids of the exported records. InputError if two have the same: they would be written to one file."""
    found: dict[str, None] = {}
    for index in indices:
        unit = mixture.units[index]
        rows = unit.trained(unit.source.records.read(unit.where, ("image_id",)))
        for image_id in rows.column("image_id").to_pylist():
            if image_id in found:
                raise InputError("two sources have a record of this name", field="image_id", value=image_id)
            found[image_id] = None
    return list(found)


def main(settings: Settings) -> None:
    """Export and print the summary."""
    for line in key_lines(export_labels(settings)):
        print(line)


if __name__ == "__main__":
    run(main)
