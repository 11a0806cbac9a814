"""Writes a VOC devkit's split as a records table: Ray Data reads, checks and packs the images shard by shard.

Rows keep the order of the list. An image that can't be used is left out, counted and named with the reason in the
manifest; `strict` or too many of them refuse the table. Whether it is refused is no property of the table: the same
folder can be built again with a larger tolerance and goes on from its shards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from boxsup_dist.distributed.build import ShardContent, build_table
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.records import voc
from boxsup_dist.schema import VOC_CLASSES, Record, records_to_table
from boxsup_dist.tables import ShardInfo, Table, fingerprint

ROWS_PER_SHARD = 64
ROW_GROUP_SIZE = 16
MAX_SKIPPED_SHARE = 0.05


def build_records(
    out: str,
    voc_root: str,
    split: str,
    *,
    source: str | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    row_group_size: int = ROW_GROUP_SIZE,
    strict: bool = False,
    max_skipped_share: float = MAX_SKIPPED_SHARE,
    num_cpus: int | None = None,
    description: str = "records",
) -> Table:
    """Build, continue or just open the records table of `split` at `out`.

    `split` is a list as voc.read_split takes it, or several joined by `+` (each row names its own). `source` names the
    data set in the image ids; by default the year folder in lower case (voc2012). Raises InputError for a bad root,
    list or setting; RecordError at the first unusable image if `strict`, else if their share is above
    `max_skipped_share`.
    """
    _check_settings(rows_per_shard, row_group_size, max_skipped_share)
    root = voc.find_root(voc_root)
    name = source or root.rsplit("/", 1)[-1].lower()
    entries = read_entries(root, split)
    settings = {
        "source": name,
        "split": split if "/" not in split else split.rsplit("/", 1)[-1].removesuffix(".txt"),
        "ids": fingerprint(entries),
        "num_ids": len(entries),
        "classes": fingerprint(VOC_CLASSES),
        "rows_per_shard": rows_per_shard,
    }

    def make_shard(index: int) -> ShardContent:
        part = entries[index * rows_per_shard : (index + 1) * rows_per_shard]
        return pack_records(part, lambda image_id, s: voc.read_record(root, image_id, s, source=name), strict=strict)

    return build_table(
        out,
        "records",
        settings,
        math.ceil(len(entries) / rows_per_shard),
        make_shard,
        row_group_size=row_group_size,
        description=description,
        num_cpus=num_cpus,
        check=lambda shards: check_skipped(shards, 0.0 if strict else max_skipped_share),
    )


def read_entries(root: str, split: str) -> list[tuple[str, str]]:
    """(image id, split name) of every image of one or several splits joined by `+`. InputError if they overlap."""
    entries = []
    for part in split.split("+"):
        name = part.rsplit("/", 1)[-1].removesuffix(".txt")
        entries += [(image_id, name) for image_id in voc.read_split(root, part)]
    repeated = [image_id for image_id, count in Counter(image_id for image_id, _ in entries).items() if count > 1]
    if repeated:
        raise InputError("the splits share images", field="split", value=repeated[:5], expected="disjoint lists")
    return entries


def pack_records(
    entries: Sequence[tuple[str, str]], read: Callable[[str, str], Record], *, strict: bool = False
) -> ShardContent:
    """Read (image id, split) entries into one shard. A RecordError leaves its image out, or is raised if `strict`."""
    records, problems = [], []
    for image_id, split in entries:
        try:
            records.append(read(image_id, split))
        except RecordError as error:
            if strict:
                raise
            problems.append({"image_id": image_id, "problem": str(error)})
    return ShardContent(records_to_table(records), count_records(records) | {"skipped": len(problems)}, problems)


def count_records(records: Sequence[Record], classes: Sequence[str] = VOC_CLASSES) -> dict[str, int]:
    """Images, boxes, difficult and crowd boxes, masks, and boxes per class (`boxes.NAME`)."""
    class_ids = Counter(int(class_id) for record in records for class_id in record.class_ids)
    return {
        "images": len(records),
        "boxes": sum(class_ids.values()),
        "difficult": sum(int(record.difficult.sum()) for record in records),
        "crowd": sum(int(record.crowd.sum()) for record in records),
        "with_mask": sum(record.gt_label_map is not None for record in records),
        **{f"boxes.{classes[class_id]}": count for class_id, count in sorted(class_ids.items())},
    }


def check_skipped(shards: Sequence[ShardInfo], max_share: float) -> None:
    """Raise RecordError, naming the images and reasons, if more than `max_share` of the images were left out."""
    problems = [problem for shard in shards for problem in shard.problems]
    total = sum(shard.num_rows for shard in shards) + len(problems)
    if len(problems) <= max_share * total:
        return
    shown = "\n".join(f"  {p['image_id']}: {p['problem']}" for p in problems[:10])
    rest = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
    raise RecordError(
        f"{len(problems)} of {total} images can't be used, allowed are {max_share:.1%}:\n{shown}{rest}\n"
        "mend them or raise max_skipped_share"
    )


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
