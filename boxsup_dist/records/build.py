"""Writes what a data set's reader reads as a records table: Ray Data reads, checks and packs the images shard by shard.

Rows keep the order of the list. An image that can't be used is left out, counted and named with the reason in the
manifest; `strict` or too many of them refuse the table. Whether it is refused is no property of the table: the same
folder can be built again with a larger tolerance and goes on from its shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray

from boxsup_dist.data.schema import VOC_CLASSES, Record, records_to_table
from boxsup_dist.data.tables import MANIFEST, ShardInfo, Table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.build import ShardContent, build_table
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.records.reader import Entry, Reader

ROWS_PER_SHARD = 64
ROW_GROUP_SIZE = 16
MAX_SKIPPED_SHARE = 0.05


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
    """Build, continue or just open the records table of what `reader` reads at `out`.

    Raises InputError for a bad setting or a list of another length than `expect_images`; RecordError at the first
    unusable image if `strict`, else if their share is above `max_skipped_share`, or if one is while `expect_images` is
    given: the table has exactly so many images or is refused.
    """
    _check_settings(rows_per_shard, row_group_size, max_skipped_share)
    _check_count(reader, expect_images)
    storage.safe_name(reader.source, field="source")  # image ids begin with it, and become names of files
    settings = {
        "source": reader.source,
        "split": reader.split,
        **reader.identity,
        "num_ids": len(reader.entries),
        "classes": reader.classes,
        "rows_per_shard": rows_per_shard,
    }
    parts: list[ray.ObjectRef] = []
    if not storage.exists(storage.join(storage.absolute(out), MANIFEST)):  # a whole table is opened without Ray
        session.start(num_cpus)
        parts = _share(reader.entries, rows_per_shard)
    read, classes = reader.read, reader.classes

    def make_shard(index: int) -> ShardContent:
        return pack_records(ray.get(parts[index]), read, classes, strict=strict)

    exact = strict or expect_images is not None
    return build_table(
        out,
        "records",
        settings,
        -(-len(reader.entries) // rows_per_shard),
        make_shard,
        row_group_size=row_group_size,
        description=description,
        num_cpus=num_cpus,
        check=lambda shards: check_skipped(shards, 0.0 if exact else max_skipped_share),
    )


def _share(entries: Sequence[Entry], rows_per_shard: int) -> list[ray.ObjectRef]:
    """The entries of every shard, for a task to fetch its own: all may be gigabytes (COCO's polygons)."""
    return [ray.put(entries[start : start + rows_per_shard]) for start in range(0, len(entries), rows_per_shard)]


def pack_records(
    entries: Sequence[Entry],
    read: Callable[[Any], Record],
    classes: Sequence[str] = VOC_CLASSES,
    *,
    strict: bool = False,
) -> ShardContent:
    """Read entries into one shard. A RecordError leaves its image out under its name, or is raised if `strict`."""
    records, problems = [], []
    for entry in entries:
        try:
            records.append(read(entry))
        except RecordError as error:
            if strict:
                raise
            problems.append({"image_id": entry.name, "problem": str(error)})
    left_out = [{"image_id": entry.name, "problem": text} for entry in entries for text in entry.left_out]
    counts = count_records(records, classes) | {"skipped": len(problems), "left_out_boxes": len(left_out)}
    return ShardContent(records_to_table(records), counts, problems + left_out)


def count_records(records: Sequence[Record], classes: Sequence[str] = VOC_CLASSES) -> dict[str, int]:
    """Images, those with boxes and with masks of both kinds, boxes by kind and by class (`boxes.NAME`)."""
    class_ids = Counter(int(class_id) for record in records for class_id in record.class_ids)
    return {
        "images": len(records),
        "boxes": sum(class_ids.values()),
        "difficult": sum(int(record.difficult.sum()) for record in records),
        "crowd": sum(int(record.crowd.sum()) for record in records),
        "with_boxes": sum(len(record.class_ids) > 0 for record in records),
        "with_mask": sum(record.gt_label_map is not None for record in records),
        "with_instances": sum(record.instance_masks is not None for record in records),
        **{f"boxes.{classes[class_id]}": count for class_id, count in sorted(class_ids.items())},
    }


def check_skipped(shards: Sequence[ShardInfo], max_share: float) -> None:
    """Raise RecordError, naming the images and reasons, if more than `max_share` of the images were left out."""
    problems = [problem for shard in shards for problem in shard.problems]
    skipped = sum(shard.counts["skipped"] for shard in shards)
    total = sum(shard.num_rows for shard in shards) + skipped
    if skipped <= max_share * total:
        return
    shown = "\n".join(f"  {p['image_id']}: {p['problem']}" for p in problems[:10])
    rest = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
    raise RecordError(
        f"{skipped} of {total} images can't be used, allowed are {max_share:.1%}:\n{shown}{rest}\n"
        "mend them or raise max_skipped_share"
    )


def _check_count(reader: Reader, expect_images: int | None) -> None:
    if expect_images is not None and len(reader.entries) != expect_images:
        where = f"{reader.source}, {reader.split}"
        expected = f"{expect_images} images"
        raise InputError("another number of images", field=where, value=len(reader.entries), expected=expected)


def _check_settings(rows_per_shard: int, row_group_size: int, max_skipped_share: float) -> None:
    for name, value in (("rows_per_shard", rows_per_shard), ("row_group_size", row_group_size)):
        if value < 1:
            raise SettingError("out of range", field=name, value=value, expected="1 or more")
    if row_group_size > rows_per_shard:
        raise SettingError(
            "a row group can't be larger than its shard",
            field="row_group_size",
            value=row_group_size,
            expected=f"<= rows_per_shard = {rows_per_shard}",
        )
    if not 0 <= max_skipped_share < 1:
        raise SettingError(
            "out of range", field="max_skipped_share", value=max_skipped_share, expected="0 <= share < 1"
        )


def summarize(table: Table) -> dict[str, object]:
    """What a person wants to know of a finished records table, as JSON values."""
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
