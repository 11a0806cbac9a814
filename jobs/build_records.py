"""Build a records table: python -m jobs.build_records --split S --out URI, and --voc-root or --coco-annotations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from boxsup_dist import storage
from boxsup_dist.errors import SettingError
from boxsup_dist.records import shard
from boxsup_dist.records.coco import ClassList
from boxsup_dist.tables import Table
from jobs._cli import run


@dataclass(frozen=True)
class Settings:
    """Write images and annotations of a VOC devkit's split or of COCO as a records table; a second call continues."""

    split: str
    """VOC: list in ImageSets/Segmentation, else Main (train, Main/trainval), a list file, or several joined by +.
    COCO: the name that the records carry (train2017)."""
    out: str
    """Folder or URI of the table."""
    voc_root: str | None = None
    """VOC: year folder (VOCdevkit/VOC2012), or a folder that holds just one. A path or an fsspec URI."""
    coco_annotations: str | None = None
    """COCO: the file instances_*.json."""
    coco_images: str | None = None
    """COCO: the folder of its images."""
    classes: ClassList = "voc"
    """COCO: VOC's 20 classes, or all of the file."""
    only_with_objects: bool = False
    """COCO: leave out images without an object of these classes."""
    source: str | None = None
    """Name of the data set in the image ids; by default VOC's year folder in lower case, or coco."""
    strict: bool = False
    """Stop at the first unusable image instead of leaving it out."""
    max_skipped_share: float = shard.MAX_SKIPPED_SHARE
    """Refuse the table if more than this share of the images is unusable."""
    rows_per_shard: int = shard.ROWS_PER_SHARD
    """Images in one Parquet file; a task holds that many in memory."""
    row_group_size: int = shard.ROW_GROUP_SIZE
    """Images in one row group, the unit of later reads and work."""
    num_cpus: int | None = None
    """CPUs of the local Ray session; by default all cores. Not with RAY_ADDRESS."""


def build(settings: Settings) -> Table:
    """Build the table from the one source that the settings name; SettingError if that is none or both."""
    common: dict[str, Any] = {
        "rows_per_shard": settings.rows_per_shard,
        "row_group_size": settings.row_group_size,
        "strict": settings.strict,
        "max_skipped_share": settings.max_skipped_share,
        "num_cpus": settings.num_cpus,
    }
    coco = {
        "coco_annotations": settings.coco_annotations,
        "coco_images": settings.coco_images,
        "classes": settings.classes if settings.classes != "voc" else None,
        "only_with_objects": settings.only_with_objects or None,
    }
    if settings.voc_root is not None:
        given = [name for name, value in coco.items() if value is not None]
        if given:
            raise SettingError("a setting of COCO beside voc_root", field=", ".join(given), expected="one data set")
        return shard.build_records(settings.out, settings.voc_root, settings.split, source=settings.source, **common)
    if settings.coco_annotations is None or settings.coco_images is None:
        expected = "voc_root, or coco_annotations and coco_images"
        raise SettingError("no data set to read", field="voc_root, coco_annotations", expected=expected)
    return shard.build_coco_records(
        settings.out,
        settings.coco_annotations,
        settings.coco_images,
        settings.split,
        classes=settings.classes,
        only_with_objects=settings.only_with_objects,
        source=settings.source or "coco",
        **common,
    )


def main(settings: Settings) -> None:
    """Build the table, leave OUT/summary.json and print what is in it."""
    started = time.monotonic()
    table = build(settings)
    summary = shard.summarize(table)
    summary["seconds"] = round(time.monotonic() - started, 2)
    storage.write_json(storage.join(table.uri, "summary.json"), summary)
    _print(summary)


def _print(summary: dict) -> None:
    console = Console()
    rows = RichTable("records", "", title=summary["out"])
    for key, value in summary["counts"].items():
        rows.add_row(key.replace("boxes.", "  "), str(value))
    rows.add_row("size", f"{summary['num_bytes'] / 2**20:.1f} MiB in {summary['num_shards']} shards")
    rows.add_row("time", f"{summary['seconds']} s")
    console.print(rows)
    for problem in summary["problems"][:20]:
        console.print(f"skipped {problem['image_id']}: {problem['problem']}", markup=False, highlight=False)
    if len(summary["problems"]) > 20:
        console.print(f"and {len(summary['problems']) - 20} more, see summary.json")


if __name__ == "__main__":
    run(main)
