"""Images that two tables share: the same file, or one published name in several editions of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from boxsup_dist.config import Duplicates
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError


def find_duplicates(
    records: Sequence[Table], val_records: Table | None, duplicates: Duplicates
) -> list[frozenset[int]]:
    """Rows of each table not to train on: images that an earlier table or the validation records have too.

    The same image is the same file, or has one published_name. Raises InputError, naming some, if there are any and
    `duplicates` is "refuse".
    """
    owner: dict[str, str] = {}  # key of an image -> the table that has it
    if val_records is not None:
        owner = {key: "val_records" for _, keys in _image_keys(val_records) for key in keys}
    left_out, shown = [], []
    for table in records:
        rows = set()
        for row, (image_id, keys) in enumerate(_image_keys(table)):
            others = [owner[key] for key in keys if key in owner]
            if others:
                rows.add(row)
                shown.append(f"{image_id} (also in {others[0]})")
            for key in keys:
                owner.setdefault(key, table.uri)
        left_out.append(frozenset(rows))
    if duplicates == "refuse" and shown:
        raise InputError(
            f"{len(shown)} images are in two tables of this run",
            field="duplicates",
            value=shown[:5],
            expected="images that no other source and no evaluation has, or duplicates drop",
        )
    return left_out


def _image_keys(table: Table) -> Iterator[tuple[str, list[str]]]:
    """image_id of every row, and what tells that it is the same image: its bytes, and its name where that says so."""
    for shard in table.read_shards(("image_id", "image_hash")):
        for row in shard.to_pylist():
            name = published_name(row["image_id"])
            yield row["image_id"], [row["image_hash"]] + ([name] if name else [])


def published_name(image_id: str) -> str | None:
    """One name of an image of VOC or COCO in all their editions; None for a name of another form.

    VOC 2012's 2007_000032 is VOC 2007's 000032; PASCAL-Context and SBD keep VOC's names; COCO 2014's names begin with
    COCO_train2014_, those of 2017 do not.
    """
    source, _, name = image_id.partition("/")
    if re.fullmatch(r"\d{6}", name) and re.fullmatch(r"voc\d{4}", source):
        return f"{source[3:]}_{name}"
    if re.fullmatch(r"\d{4}_\d{6}", name):
        return name
    coco = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", name)
    return coco.group(1) if coco else None
