"""From your own images and boxes to masks, a network and a report.

    python -m jobs.start --images photos --boxes boxes.json --out runs/mine

Finds out the format of the boxes (COCO, Pascal VOC XML, YOLO, CSV, CVAT, LabelMe, Label Studio, Open Images, VIA),
shows some images with their boxes, says what looks wrong and how long the work will take, and then does it: records,
proposals, training, masks, gallery. Every step is a command of its own, which is shown before it runs. Run the command
again to continue where it stopped; --look-only stops before the long steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.proposals.settings import NativeMethod
from boxsup_dist.records.settings import BoxFormat, Outside
from boxsup_dist.runs.command_line import Epochs, run, run_step
from boxsup_dist.runs.layout import RunFiles

if TYPE_CHECKING:
    from boxsup_dist.data.tables import Table


@dataclass(frozen=True)
class Settings:
    """What to read, and where to write."""

    images: str
    """Folder or URI of the images; its sub-folders are read too."""
    boxes: str
    """File or folder of the annotations."""
    out: str
    """Folder or URI to write: records, held_out (images to evaluate on), proposals, run (the training), masks,
    masks_held_out, gallery, contact_sheet.jpg."""
    look_only: bool = False
    """Read and check the boxes, draw the contact sheet, and stop."""
    box_format: BoxFormat | None = None
    """Format of the boxes. Default: found out from the files."""
    outside: Outside = "refuse"
    """What to do with a box that reaches more than 1 px beyond its image. refuse leaves the image out, clip cuts the
    box off and counts it."""
    relative: bool = False
    """Read coordinates as shares of width and height (0 to 1) in a format that has pixels."""
    masks: str | None = None
    """Masks of some of the images, as a folder of PNG label maps or a COCO file with segmentations. Training learns
    from the masks where there are some, and from the boxes of all other images."""
    method: NativeMethod = "selective_search"
    """Proposal method."""
    proposals: str | None = None
    """A proposals table of OUT/records to train on instead, such as one with masks of a segmenter: docs/segments.md."""
    held_out_share: float = 0.1
    """Share of the images that are evaluated and not trained on, drawn by their names; at least 10 images. None of
    fewer than 40 images. 0: train on all."""
    epochs: Epochs = None
    seed: int = 0
    """Seed of the training."""

    def check(self) -> None:
        """Raise SettingError on a value that cannot work."""
        if self.epochs is not None and self.epochs < 1:
            raise SettingError("a setting is out of range", field="epochs", value=self.epochs, expected=">= 1")
        share = self.held_out_share
        if not 0 <= share <= 0.5:
            raise SettingError("a setting is out of range", field="held_out_share", value=share, expected="0 to 0.5")


def main(settings: Settings) -> None:
    """Run every step that is not done yet, and print where the results are."""
    settings.check()
    out = storage.absolute(settings.out)
    records, run_dir, masks = (storage.join(out, name) for name in ("records", "run", "masks"))
    proposals = settings.proposals or storage.join(out, "proposals")
    held_out_masks = storage.join(out, "masks_held_out")
    run_step("build_records", _records_arguments(settings, records))
    from boxsup_dist.data.tables import check_paired, open_table
    from boxsup_dist.runs import start

    table = open_table(records, "records")
    if settings.proposals is not None:
        check_paired(table, open_table(proposals, "proposals"))
    if settings.masks is not None:
        _check_masks(table)
    _look(table, out)
    if settings.look_only:
        return
    held_out = _hold_out(settings, table, storage.join(out, "held_out"))
    num_trained = table.num_rows - (held_out.num_rows if held_out else 0)
    choice = start.choose(num_trained, start.long_side_px(table), settings.epochs)
    seconds = start.estimate(table, choice, settings.method)
    minutes = (seconds.training + (0 if settings.proposals else seconds.proposals)) / 60
    steps = choice.steps(num_trained)
    kept = f" ({num_trained} to train on, {held_out.num_rows} held out to evaluate on)" if held_out else ""
    length = f"{choice.epochs} epochs, {steps} steps: about {minutes:.0f} minutes on this machine"
    print(f"{table.num_rows} images{kept}, {length}")
    started = time.monotonic()
    if settings.proposals is None:
        run_step("build_proposals", ["--records", records, "--method", settings.method, "--out", proposals])
    tables = _tables(settings, records, proposals)
    if held_out:
        tables += ["--val-records", held_out.uri, "--duplicates", "drop", "--evaluate-every", "1"]
    run_step("train", [*choice.arguments(), "--run-dir", run_dir, *tables, "--seed", str(settings.seed)])
    run_step("export_labels", ["--run-dir", run_dir, "--out", masks, "--undecided", "decided"])
    if held_out:
        network = ["--run-dir", run_dir, "--checkpoint", "best"]
        run_step("predict", [*network, "--images", held_out.uri, "--out", held_out_masks, "--coco-json"])
    gallery = storage.join(out, "gallery", "index.html")
    if not storage.exists(gallery):
        run_step("gallery", ["--run-dir", run_dir, "--out", storage.join(out, "gallery")])
    taken = (time.monotonic() - started) / 60
    print(f"\nmasks of your images: {masks}/label_maps and {masks}/coco.json ({taken:.0f} minutes)")
    if held_out:
        print(f"masks of the {held_out.num_rows} held-out images, predicted: {held_out_masks}/label_maps and coco.json")
    print(f"boxes that are probably wrong, and every image: {gallery}")
    print(f"report of the training: {RunFiles(run_dir).report}")
    print(f"masks of other images: python -m jobs.predict --run-dir {run_dir} --images FOLDER --out masks --overlays")


def _tables(settings: Settings, records: str, proposals: str) -> list[str]:
    """The arguments of jobs.train that name the tables."""
    if settings.masks is None:
        return ["--records", records, "--proposals", proposals]
    others = f"records={records},supervision=box,proposals={proposals}"
    return ["--records", records, "--supervision", "mask", "--also", others]


def _records_arguments(settings: Settings, out: str) -> list[str]:
    arguments = ["--images", settings.images, "--boxes", settings.boxes, "--split", "train", "--out", out]
    if settings.box_format is not None:
        arguments += ["--box-format", settings.box_format]
    if settings.masks is not None:
        arguments += ["--masks", settings.masks]
    if settings.outside != "refuse":
        arguments += ["--outside", settings.outside]
    return [*arguments, "--relative"] if settings.relative else arguments


def _hold_out(settings: Settings, table: Table, uri: str) -> Table | None:
    """Records of the images to evaluate on; None if there are none, or if they have no box."""
    from boxsup_dist.data.tables import open_table
    from boxsup_dist.runs import start

    count = start.num_held_out(table.num_rows, settings.held_out_share)
    if count == 0:
        return None
    # A few unusable images are a large share of few; the table of all images has passed that check.
    some = ["--draw", str(count), "--max-skipped-share", "0.9"]
    run_step("build_records", [*_records_arguments(settings, uri), *some])
    found = open_table(uri, "records")
    return found if found.counts.get("boxes", 0) else None


def _check_masks(table: Table) -> None:
    """Say how many images have a mask; SettingError if all do, because nothing is left to learn from boxes."""
    with_mask = table.counts.get("with_mask", 0)
    print(f"training learns from the masks of {with_mask} images, and from the boxes of {table.num_rows - with_mask}")
    if with_mask == table.num_rows:
        command = f"python -m jobs.train mini --records {table.uri} --supervision mask --run-dir RUN"
        raise SettingError(
            "every image has a mask, no box is needed", field="masks", expected=f"leave it out, or {command}"
        )


def _look(table: Table, out: str) -> None:
    """Draw the contact sheet, and print what looks wrong."""
    from boxsup_dist.records.own.doubts import find_doubts
    from boxsup_dist.reporting.contact_sheet import draw_contact_sheet
    from boxsup_dist.runs import start

    sheet = storage.join(out, "contact_sheet.jpg")
    storage.write_bytes(sheet, draw_contact_sheet(start.images_to_show(table), table.classes))
    print(f"look whether the boxes fit their images: {sheet}")
    for doubt in find_doubts(table):
        where = f", such as in {', '.join(doubt.images)}" if doubt.images else ""
        print(f"warning: {doubt.text}{where}")


if __name__ == "__main__":
    run(main)
