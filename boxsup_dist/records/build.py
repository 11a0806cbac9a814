"""Builds the records table of a data set with Ray: tasks read, check and pack the images shard by shard.

Reads what the reader of the data set reads; writes the records table in the order of the reader's list. An unusable
image is left out, counted, and listed with the reason in the manifest. The table is refused if too many images are
unusable, with `strict` if one is. The tolerated share is not stored with the table: a build with a larger share
continues from the finished shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from boxsup_dist.data.input_names import keep_input_names
from boxsup_dist.data.schema import VOC_CLASSES, Record, records_to_table
from boxsup_dist.data.tables import MANIFEST, ShardInfo, Table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.build import ShardContent, build_table
from boxsup_dist.distributed.shared import Reference
from boxsup_dist.errors import InputError, RecordError, SettingError, UnreadableFileError
from boxsup_dist.io import storage
from boxsup_dist.records.reader import Entry, Reader, count_records
from boxsup_dist.records.settings import MAX_SKIPPED_SHARE, ROW_GROUP_SIZE, ROWS_PER_SHARD


def build_records(
    out: str,
    reader: Reader,
    *,
    expect_images: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    row_group_size: int = ROW_GROUP_SIZE,
    strict: bool = False,
    max_skipped_share: float = MAX_SKIPPED_SHARE,
    num_cpus: int | None = None,
    description: str = "records",
) -> Table:
    """Build the records table at `out`, continue an interrupted build, or open the finished table.

    Args:
        out: Folder or URI of the table.
        reader: Lists and reads the images.
        expect_images: The table has exactly this many images or is refused; None: any number.
        rows_per_shard: Images of one shard.
        row_group_size: Images of one row group.
        strict: Stop at the first unusable image.
        max_skipped_share: The table is refused if a larger share of the images is unusable.
        num_cpus: CPUs of a local Ray session, as in `session.start`.
        description: Name of the build beside its progress.

    Raises:
        InputError: The reader lists another number of images than `expect_images`.
        SettingError: A setting is out of range.
        RecordError: Too many images are unusable; lists the first ones with the reasons.
    """
    _check_settings(rows_per_shard, row_group_size, max_skipped_share)
    _check_count(reader, expect_images)
    storage.safe_name(reader.source, field="source")  # image ids begin with it, and become file names
    num_shards = -(-len(reader.entries) // rows_per_shard)
    parts: list[Reference] = []
    if not storage.exists(storage.join(storage.absolute(out), MANIFEST)):  # a finished table is opened without Ray
        session.start(num_cpus)
        # Each task fetches its own: all together may be gigabytes (the polygons of COCO).
        parts = [ray.put(_entries(reader, index, rows_per_shard)) for index in range(num_shards)]
    read, classes = reader.read, reader.classes

    def make_shard(index: int, crashed: Mapping[str, str]) -> ShardContent:
        return pack_records(ray.get(parts[index]), read, classes, strict=strict, crashed=crashed)

    def image_ids(index: int) -> list[str]:
        return [entry.name for entry in _entries(reader, index, rows_per_shard)]

    exact = strict or expect_images is not None
    table = build_table(
        out,
        "records",
        _identity(reader, rows_per_shard),
        num_shards,
        make_shard,
        image_ids=image_ids,
        row_group_size=row_group_size,
        description=description,
        num_cpus=num_cpus,
        check=lambda shards: check_skipped(shards, 0.0 if exact else max_skipped_share),
    )
    if reader.input_names is not None:
        keep_input_names(table.uri, reader.input_names)
    return table


def _identity(reader: Reader, rows_per_shard: int) -> dict[str, Any]:
    """The settings that decide the rows of the table."""
    return {
        "source": reader.source,
        "split": reader.split,
        **reader.identity,
        "num_ids": len(reader.entries),
        "classes": reader.classes,
        "rows_per_shard": rows_per_shard,
    }


def _entries(reader: Reader, index: int, rows_per_shard: int) -> Sequence[Entry]:
    return reader.entries[index * rows_per_shard : (index + 1) * rows_per_shard]


def pack_records(
    entries: Sequence[Entry],
    read: Callable[[Any], Record],
    classes: Sequence[str] = VOC_CLASSES,
    *,
    strict: bool = False,
    crashed: Mapping[str, str] = {},
) -> ShardContent:
    """Read entries into one shard. An image with a bad file is left out and listed, or raises if `strict`.

    Images in `crashed` (name -> problem) are left out and listed without being read.
    """
    records, problems = [], []
    for entry in entries:
        if entry.name in crashed:
            problems.append({"image_id": entry.name, "problem": crashed[entry.name]})
            continue
        try:
            records.append(read(entry))
        except (RecordError, UnreadableFileError) as error:
            if strict:
                raise
            problems.append({"image_id": entry.name, "problem": str(error)})
    left_out = [{"image_id": entry.name, "problem": text} for entry in entries for text in entry.left_out]
    counts = count_records(records, classes) | {"skipped": len(problems), "left_out_boxes": len(left_out)}
    return ShardContent(records_to_table(records), counts, problems + left_out)


def check_skipped(shards: Sequence[ShardInfo], max_share: float) -> None:
    """Raise RecordError with the first images and reasons if more than `max_share` of the images was left out."""
    problems = [problem for shard in shards for problem in shard.problems]
    skipped = sum(shard.counts["skipped"] for shard in shards)
    total = sum(shard.num_rows for shard in shards) + skipped
    if skipped <= max_share * total:
        return
    shown = "\n".join(f"  {p['image_id']}: {p['problem']}" for p in problems[:10])
    rest = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
    raise RecordError(
        f"{skipped} of {total} images are unusable, {max_share:.1%} are allowed:\n{shown}{rest}\n"
        "correct them, or raise max_skipped_share"
    )


def _check_count(reader: Reader, expect_images: int | None) -> None:
    if expect_images is not None and len(reader.entries) != expect_images:
        where = f"{reader.source}, {reader.split}"
        expected = f"{expect_images} images"
        raise InputError("the wrong number of images", field=where, value=len(reader.entries), expected=expected)


def _check_settings(rows_per_shard: int, row_group_size: int, max_skipped_share: float) -> None:
    for name, value in (("rows_per_shard", rows_per_shard), ("row_group_size", row_group_size)):
        if value < 1:
            raise SettingError("a setting is out of range", field=name, value=value, expected="1 or more")
    if row_group_size > rows_per_shard:
        raise SettingError(
            "a row group is larger than its shard",
            field="row_group_size",
            value=row_group_size,
            expected=f"<= rows_per_shard = {rows_per_shard}",
        )
    if not 0 <= max_skipped_share < 1:
        raise SettingError(
            "a setting is out of range", field="max_skipped_share", value=max_skipped_share, expected="0 <= share < 1"
        )


def summarize(table: Table) -> dict[str, object]:
    """Facts about a finished records table as JSON values."""
    return {
        "out": table.uri,
        "num_images": table.num_rows,
        "num_shards": len(table.shards),
        "num_bytes": table.num_bytes,
        "fingerprint": table.fingerprint,
        "counts": table.counts,
        "settings": table.settings,
        "problems": [problem for shard in table.shards for problem in shard.problems],
    }
