"""Images that two tables of a run share, so that no image is trained on twice or both trained on and measured.

Two images are the same if their files are equal, or if both have the same published name (`published_name`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from boxsup_dist.config import Duplicates
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import InputError


def find_duplicates(
    records: Sequence[Table],
    val_records: Table | None,
    duplicates: Duplicates,
    not_trained: Sequence[frozenset[int]] = (),
) -> list[frozenset[int]]:
    """Find the rows of each records table whose image an earlier table or the validation records also have.

    Args:
        records: Records tables of the training sources, in the order of the run.
        val_records: Records that the run evaluates on; None without an evaluation.
        duplicates: The setting `duplicates`: "drop" returns the rows, "refuse" raises if there are any.
        not_trained: For each table the rows that its source does not train on; they count as absent. Empty: none.

    Returns:
        For each table of `records` the row numbers to leave out of training, `not_trained` included, counted over the
        whole table.

    Raises:
        InputError: If `duplicates` is "refuse" and two tables share an image; the message names up to five.
    """
    owner: dict[str, str] = {}  # key of an image -> the table that has it
    if val_records is not None:
        owner = {key: "val_records" for _, keys in _image_keys(val_records) for key in keys}
    left_out, shown = [], []
    for index, table in enumerate(records):
        absent = not_trained[index] if not_trained else frozenset()
        rows = set(absent)
        for row, (image_id, keys) in enumerate(_image_keys(table)):
            if row in absent:
                continue
            others = [owner[key] for key in keys if key in owner]
            if others:
                rows.add(row)
                shown.append(f"{image_id} (also in {others[0]})")
            for key in keys:
                owner.setdefault(key, table.uri)
        left_out.append(frozenset(rows))
    if duplicates == "refuse" and shown:
        raise InputError(
            f"{len(shown)} images are in two tables of this run: remove them from one, or set duplicates to drop",
            field="duplicates",
            value=shown[:5],
            expected="each image in one source only, and in no evaluation",
        )
    return left_out


def _image_keys(table: Table) -> Iterator[tuple[str, list[str]]]:
    """Yield for every row its image_id and the keys of its image: the file's hash and, if it has one, its name."""
    for shard in table.read_shards(("image_id", "image_hash")):
        for row in shard.to_pylist():
            name = published_name(row["image_id"])
            yield row["image_id"], [row["image_hash"]] + ([name] if name else [])


def published_name(image_id: str) -> str | None:
    """Return the name by which every edition of VOC or COCO knows an image, None for any other image.

    VOC 2012's 2007_000032 is VOC 2007's 000032. PASCAL-Context and SBD use VOC's names. COCO 2014 puts COCO_train2014_
    before the number that is COCO 2017's name.
    """
    source, _, name = image_id.partition("/")
    if re.fullmatch(r"\d{6}", name) and re.fullmatch(r"voc\d{4}", source):
        return f"{source[3:]}_{name}"
    if re.fullmatch(r"\d{4}_\d{6}", name):
        return name
    coco = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", name)
    return coco.group(1) if coco else None
