"""Writes a split of VOC or COCO as a records table: Ray Data reads, checks and packs the images shard by shard.

Rows keep the order of the list. An image that can't be used is left out, counted and named with the reason in the
manifest; `strict` or too many of them refuse the table. Whether it is refused is no property of the table: the same
folder can be built again with a larger tolerance and goes on from its shards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray

from boxsup_dist import storage
from boxsup_dist.distributed import session
from boxsup_dist.distributed.build import ShardContent, build_table
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.records import coco, voc
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
    """Build, continue or just open the records table of a VOC devkit's `split` at `out`.

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
        "classes": VOC_CLASSES,
        "rows_per_shard": rows_per_shard,
    }

    def read(entry: tuple[str, str]) -> Record:
        return voc.read_record(root, *entry, source=name)

    def make_shard(index: int) -> ShardContent:
        part = entries[index * rows_per_shard : (index + 1) * rows_per_shard]
        return pack_records(part, read, lambda entry: entry[0], strict=strict)

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


def build_coco_records(
    out: str,
    annotations: str,
    images: str,
    split: str,
    *,
    classes: coco.ClassList = "voc",
    only_with_objects: bool = False,
    source: str = "coco",
    rows_per_shard: int = ROWS_PER_SHARD,
    row_group_size: int = ROW_GROUP_SIZE,
    strict: bool = False,
    max_skipped_share: float = MAX_SKIPPED_SHARE,
    num_cpus: int | None = None,
    description: str = "records",
) -> Table:
    """Build, continue or just open the records table of a COCO annotation file and its folder of images at `out`.

    `classes` and `only_with_objects` are those of coco.read_index; `split` is only a name. Raises as build_records.
    """
    _check_settings(rows_per_shard, row_group_size, max_skipped_share)
    file, folder = storage.absolute(annotations), storage.absolute(images)
    index = coco.read_index(file, classes, only_with_objects=only_with_objects)
    settings = {
        "source": source,
        "split": split,
        "annotations": index.fingerprint,
        "num_ids": len(index.images),
        "classes": index.classes,
        "rows_per_shard": rows_per_shard,
    }
    # The whole index may be gigabytes: a task fetches its own part from the object store.
    session.start(num_cpus)
    starts = range(0, len(index.images), rows_per_shard)
    parts = [ray.put(index.images[start : start + rows_per_shard]) for start in starts]
    class_of, class_names = index.class_of, index.classes
    del index

    def read(image: coco.CocoImage) -> Record:
        return coco.read_record(folder, image, split, class_of, source=source)

    def make_shard(index: int) -> ShardContent:
        part = ray.get(parts[index])
        content = pack_records(part, read, lambda image: image.name, classes=class_names, strict=strict)
        left_out = [{"image_id": image.name, "problem": text} for image in part for text in image.left_out]
        return ShardContent(
            content.table, content.counts | {"left_out_boxes": len(left_out)}, content.problems + left_out
        )

    return build_table(
        out,
        "records",
        settings,
        len(parts),
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
    entries: Sequence[Any],
    read: Callable[[Any], Record],
    name: Callable[[Any], str],
    *,
    classes: Sequence[str] = VOC_CLASSES,
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
            problems.append({"image_id": name(entry), "problem": str(error)})
    counts = count_records(records, classes) | {"skipped": len(problems)}
    return ShardContent(records_to_table(records), counts, problems)


def count_records(records: Sequence[Record], classes: Sequence[str] = VOC_CLASSES) -> dict[str, int]:
    """Images, boxes, difficult and crowd boxes, masks of both kinds, and boxes per class (`boxes.NAME`)."""
    class_ids = Counter(int(class_id) for record in records for class_id in record.class_ids)
    return {
        "images": len(records),
        "boxes": sum(class_ids.values()),
        "difficult": sum(int(record.difficult.sum()) for record in records),
        "crowd": sum(int(record.crowd.sum()) for record in records),
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
