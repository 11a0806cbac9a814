"""Build a records table: the images and annotations of one split of a data set.

    VOC             python -m jobs.build_records --voc-root VOCdevkit/VOC2012 --split train --out T
    SBD             ... --sbd-root SBD --voc-root VOCdevkit/VOC2012 --split train_aug --out T
    PASCAL-Context  ... --context-root CONTEXT --voc-root VOCdevkit/VOC2010 --split train --out T
    own boxes       python -m jobs.build_records --images photos --boxes boxes --split train --out T
    COCO            ... --coco-annotations instances_train2017.json --coco-images train2017 --split train2017 --out T

SBD alone has no boxes of its own: with --voc-root it takes VOC's, and train_aug needs them. Run the command again to
continue an interrupted build.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from boxsup_dist.errors import SettingError
from boxsup_dist.progress import counted
from boxsup_dist.records.settings import (
    MAX_SKIPPED_SHARE,
    ROW_GROUP_SIZE,
    ROWS_PER_SHARD,
    BoxFormat,
    ClassList,
    Outside,
)
from boxsup_dist.runs.command_line import NumCpus, run
from boxsup_dist.runs.summary import write_result

if TYPE_CHECKING:
    from boxsup_dist.data.tables import Table
    from boxsup_dist.records.reader import Reader


@dataclass(frozen=True)
class Settings:
    """What to read, and where to write."""

    split: str
    """VOC: list in ImageSets/Segmentation or ImageSets/Main (train, Main/trainval), or a list file. SBD: train, val,
    train_aug, or aug (the images that train_aug adds). PASCAL-Context: train or val. COCO: the name to store
    (train2017). Join several by +."""
    out: str
    """Folder or URI of the records table to write."""
    images: str | None = None
    """Own boxes: the folder of images; its sub-folders are read too."""
    boxes: str | None = None
    """Own boxes: the file or folder of annotations."""
    box_format: BoxFormat | None = None
    """Own boxes: format of the annotations. Default: found out from the files."""
    relative: bool = False
    """Own boxes: read coordinates as shares of width and height (0 to 1) in a format that has pixels."""
    masks: str | None = None
    """Own boxes: masks of some or all images, as a folder of PNG label maps or a COCO file with segmentations."""
    voc_root: str | None = None
    """VOC: year folder (VOCdevkit/VOC2012), or a folder that holds only that. All roots may be paths or URIs."""
    sbd_root: str | None = None
    """SBD: benchmark_RELEASE or the folder `dataset` in it."""
    context_root: str | None = None
    """PASCAL-Context: the folder with trainval/*.mat and labels.txt."""
    coco_annotations: tuple[str, ...] | None = None
    """COCO: the file instances_*.json. Or several, with as many folders of images, and splits joined by +."""
    coco_images: tuple[str, ...] | None = None
    """COCO: the folder of the images of each file."""
    classes: ClassList = "voc"
    """COCO: VOC's 20 classes, or all classes of the file."""
    only_with_objects: bool = False
    """COCO: leave out images without an object of these classes."""
    images_only: bool = False
    """VOC: read no annotation, for lists that have none, such as test of VOC 2012."""
    outside: Outside = "refuse"
    """Own boxes, VOC, COCO: what to do with a box or polygon that reaches more than 1 px beyond its image. refuse
    leaves the image out, clip cuts the box or polygon off and counts it."""
    source: str | None = None
    """Name of the data set in the image ids. Default: VOC's year folder in lower case, or own, sbd,
    context or coco."""
    draw: int | None = None
    """Take only this many of the images, drawn by a hash of their names: the same ones every time."""
    expect_images: int | Literal["published"] | None = None
    """Refuse the table unless it holds exactly this many images. `published`: as many as the published split."""
    strict: bool = False
    """Stop at the first unusable image instead of leaving it out."""
    max_skipped_share: float = MAX_SKIPPED_SHARE
    """Refuse the table if more than this share of the images is unusable."""
    rows_per_shard: int = ROWS_PER_SHARD
    """Images in one Parquet file. A task holds this many in memory."""
    row_group_size: int = ROW_GROUP_SIZE
    """Images in one row group, the unit of later reads and work."""
    num_cpus: NumCpus = None


_ROOTS = ("images", "boxes", "voc_root", "sbd_root", "context_root", "coco_annotations", "coco_images")
# The settings that name a data set, and the settings that only it has.
_DATA_SETS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("images", "boxes"): ("box_format", "relative", "outside", "masks"),
    ("voc_root",): ("images_only", "outside"),
    ("sbd_root",): (),
    ("voc_root", "sbd_root"): (),
    ("voc_root", "context_root"): (),
    ("coco_annotations", "coco_images"): ("classes", "only_with_objects", "outside"),
}


def open_reader(settings: Settings) -> Reader:
    """The reader of the data set that the settings name.

    Raises:
        SettingError: They name no data set or several, or have a setting that only another data set has.
        InputError: A root, list or file is absent or not what it should be.
    """
    from boxsup_dist.records import coco, context, sbd, voc
    from boxsup_dist.records.own import reader as own

    given = tuple(name for name in _ROOTS if getattr(settings, name) is not None)
    if given not in _DATA_SETS:
        sets = "; ".join(" and ".join(names) for names in _DATA_SETS)
        raise SettingError(
            "no data set to read: name one by its roots", field="roots", value=", ".join(given) or None, expected=sets
        )
    for name in ("box_format", "relative", "masks", "images_only", "outside", "classes", "only_with_objects"):
        if getattr(settings, name) != getattr(Settings, name) and name not in _DATA_SETS[given]:
            raise SettingError("has no effect on this data set", field=name, value=getattr(settings, name))
    if settings.images is not None and settings.boxes is not None:
        return own.open_own(
            settings.images,
            settings.boxes,
            settings.split,
            box_format=settings.box_format,
            source=settings.source or "own",
            outside=settings.outside,
            relative=settings.relative,
            masks=settings.masks,
        )
    if settings.coco_annotations is not None and settings.coco_images is not None:
        return coco.open_splits(
            settings.coco_annotations,
            settings.coco_images,
            settings.split,
            classes=settings.classes,
            only_with_objects=settings.only_with_objects,
            source=settings.source or "coco",
            outside=settings.outside,
        )
    if settings.sbd_root is not None:
        return sbd.open_splits(settings.sbd_root, settings.split, voc_root=settings.voc_root, source=settings.source)
    assert settings.voc_root is not None
    if settings.context_root is not None:
        name = settings.source or "context"
        return context.open_splits(settings.context_root, settings.voc_root, settings.split, source=name)
    return voc.open_splits(
        settings.voc_root,
        settings.split,
        source=settings.source,
        images_only=settings.images_only,
        outside=settings.outside,
    )


def build(settings: Settings) -> tuple[Table, int | None]:
    """The table, built or opened, and how many images its split has as published, None where that is not known."""
    reader = open_reader(settings)
    if settings.draw is not None:
        from boxsup_dist.records.reader import draw

        reader = draw(reader, settings.draw)
    expected = reader.published if settings.expect_images == "published" else settings.expect_images
    if settings.expect_images == "published" and expected is None:
        raise SettingError(
            "no published count of this split is known",
            field="expect_images",
            value=f"{reader.source}, {reader.split}",
            expected="a number",
        )
    from boxsup_dist.records.build import build_records

    table = build_records(
        settings.out,
        reader,
        expect_images=expected,
        rows_per_shard=settings.rows_per_shard,
        row_group_size=settings.row_group_size,
        strict=settings.strict,
        max_skipped_share=settings.max_skipped_share,
        num_cpus=settings.num_cpus,
    )
    return table, reader.published


def main(settings: Settings) -> None:
    """Build the table, write OUT/summary.json and print what is in it."""
    started = time.monotonic()
    table, published = build(settings)
    from boxsup_dist.records.build import summarize

    summary = summarize(table) | {"published_images": published}
    summary["seconds"] = round(time.monotonic() - started, 2)
    write_result(table.uri, summary)
    _print(summary)


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    rows = RichTable("records", "", title=summary["out"])
    for key, value in summary["counts"].items():
        rows.add_row(key.replace("boxes.", "  "), str(value))
    rows.add_row("size", f"{summary['num_bytes'] / 2**20:.1f} MiB in {counted(summary['num_shards'], 'shard')}")
    rows.add_row("time", f"{summary['seconds']} s")
    console.print(rows)
    for problem in summary["problems"][:20]:
        console.print(f"skipped {problem['image_id']}: {problem['problem']}", markup=False, highlight=False)
    if len(summary["problems"]) > 20:
        console.print(f"and {len(summary['problems']) - 20} more: see summary.json")
    published = summary["published_images"]
    if published is not None:
        relation = "as" if summary["num_images"] == published else "NOT the"
        console.print(f"{counted(summary['num_images'], 'image')}, {relation} published ({published})", highlight=False)


if __name__ == "__main__":
    run(main)
