"""Build a records table from a VOC devkit: python -m jobs.build_records --voc-root R --split S --out URI."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from boxsup_dist import storage
from boxsup_dist.records import shard
from jobs._cli import run


@dataclass(frozen=True)
class Settings:
    """Write the images and annotations of a VOC devkit's split as a records table; a second call continues."""

    voc_root: str
    """Year folder (VOCdevkit/VOC2012), or a folder that holds just one. A path or an fsspec URI."""
    split: str
    """List in ImageSets/Segmentation, else Main (train, Main/trainval), a list file, or several joined by +."""
    out: str
    """Folder or URI of the table."""
    source: str | None = None
    """Name of the data set in the image ids; by default the year folder in lower case."""
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


def main(settings: Settings) -> None:
    """Build the table, leave OUT/summary.json and print what is in it."""
    started = time.monotonic()
    table = shard.build_records(
        settings.out,
        settings.voc_root,
        settings.split,
        source=settings.source,
        rows_per_shard=settings.rows_per_shard,
        row_group_size=settings.row_group_size,
        strict=settings.strict,
        max_skipped_share=settings.max_skipped_share,
        num_cpus=settings.num_cpus,
    )
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
