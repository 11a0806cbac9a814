"""What a run trains on: data sets, the annotation that it may use of each, and the label map this gives a record.

Every supervision is one branch of `painter`; nobody else decides which columns of a record may be opened. A source is
the pair of a records table and a supervision, a mixture all sources of a run in one stream: the paper's "semi" is a
source with masks beside one with boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from boxsup_dist.config import AssignmentSettings, AugmentSettings, Duplicates, Supervision
from boxsup_dist.data.schema import Record
from boxsup_dist.data.superpixels import Segment, decode_png, decode_superpixels, paint_rectangles, paint_segments
from boxsup_dist.data.tables import RowGroup, Table, check_paired
from boxsup_dist.errors import InputError, TableError, decoding

Painter = Callable[[Record], np.ndarray]
"""Label map uint8 (H, W) of one record."""

Segments = Mapping[str, Sequence[Segment | None]]
"""By image_id, over box_index: the chosen segment, None where the box has no candidate."""

MAX_CLASS_WEIGHT = 5.0
BOX_COLUMNS = ("height", "width", "boxes_xyxy", "class_ids", "crowd")
GRANTED_COLUMNS: dict[Supervision, tuple[str, ...]] = {
    "mask": ("image_id", "gt_label_map"),
    "rectangles": ("image_id", *BOX_COLUMNS),
    "grabcut": ("image_id",),
    "wssl": ("image_id",),
    "wssl_em": ("image_id", *BOX_COLUMNS),
    "box": ("image_id", *BOX_COLUMNS),
}
"""Columns of a record that its label map may be made of."""


@dataclass(frozen=True)
class Source:
    """One data set and the supervision that it gives; partner tables where the supervision needs them.

    TableError if a partner table was made from other records.
    """

    records: Table
    supervision: Supervision
    proposals: Table | None = None
    label_maps: Table | None = None

    def __post_init__(self) -> None:
        for partner in (self.proposals, self.label_maps):
            if partner is not None:
                check_paired(self.records, partner)


class Unit(NamedTuple):
    """A row group of a source: the fixed slice that work is cut into."""

    source: Source
    where: RowGroup
    rows: tuple[int, ...]  # that training uses; others are images which another source has too


@dataclass(frozen=True)
class Mixture:
    """All sources of a run; its units, in their order, are what plans and labels count."""

    units: tuple[Unit, ...]
    assignment: AssignmentSettings
    augment: AugmentSettings
    seed: int
    class_weights: tuple[float, ...] | None = None  # of a pixel in the loss, by its class

    @property
    def sources(self) -> list[Source]:
        """Each source once, in order."""
        return list({id(unit.source): unit.source for unit in self.units}.values())

    def with_supervision(self, *supervisions: Supervision) -> list[int]:
        """Indices of the units whose source has one of these supervisions."""
        return [i for i, unit in enumerate(self.units) if unit.source.supervision in supervisions]


def make_units(sources: Sequence[Source], left_out: Sequence[frozenset[int]] = ()) -> tuple[Unit, ...]:
    """Units of all sources in table order; `left_out[i]` are the rows of source i's whole table not to train on."""
    units = []
    for index, source in enumerate(sources):
        skipped = left_out[index] if left_out else frozenset()
        first = 0
        for where in source.records.row_groups():
            rows = tuple(row for row in range(where.num_rows) if first + row not in skipped)
            units.append(Unit(source, where, rows))
            first += where.num_rows
    return tuple(units)


def balanced_weights(sources: Sequence[Source], power: float) -> tuple[float, ...]:
    """Weight of each class, background 1: (mean over classes of the areas of their boxes / that of the class) ** power.

    Boxes are known under every supervision, so that all of them get the same weights. They lie within a factor of
    MAX_CLASS_WEIGHT; a class without a box has weight 1.
    """
    areas = np.zeros(len(sources[0].records.classes))
    for source in sources:
        for shard in source.records.read_shards(("boxes_xyxy", "class_ids")):
            boxes = pc.list_flatten(pc.list_flatten(shard.column("boxes_xyxy"))).to_numpy().reshape(-1, 4)
            class_ids = pc.list_flatten(shard.column("class_ids")).to_numpy()
            np.add.at(areas, class_ids, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1, dtype=np.float64))
    found = areas > 0
    weights = np.ones(len(areas))
    weights[found] = np.clip((areas[found].mean() / areas[found]) ** power, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT)
    return tuple(weights.tolist())


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


def painter(unit: Unit, segments: Segments, assignment: AssignmentSettings, *, decided: bool = False) -> Painter:
    """What paints the label map of a unit's records from the columns that the supervision grants.

    `segments` are the boxes' choices, needed by `box` alone. `decided` paints undecided and uncovered pixels as they
    were chosen instead of ignoring them. The label map of `wssl_em` is its boxes: after the warm-up the training step
    lets the network decide inside them. Raises TableError where a partner table lacks the image or one of its boxes.
    """
    supervision = unit.source.supervision
    if supervision == "mask":
        return _ground_truth
    if supervision in ("rectangles", "wssl_em"):
        return lambda record: paint_rectangles(
            (record.height, record.width), record.boxes_xyxy, record.class_ids, record.crowd
        )
    if supervision == "box":
        return _segments_painter(unit, segments, assignment, decided)
    assert unit.source.label_maps is not None
    stored = unit.source.label_maps.read(unit.where).to_pylist()
    map_of = {row["image_id"]: row["label_map"] for row in stored}
    return lambda record: decode_png(_find(map_of, record, "label maps"))


def _ground_truth(record: Record) -> np.ndarray:
    assert record.gt_label_map is not None
    return decode_png(record.gt_label_map)


def _segments_painter(unit: Unit, segments: Segments, assignment: AssignmentSettings, decided: bool) -> Painter:
    proposals = unit.source.proposals
    assert proposals is not None
    stored = proposals.read(unit.where, ("image_id", "superpixels", "num_superpixels")).to_pylist()
    map_of = {row["image_id"]: (row["superpixels"], row["num_superpixels"]) for row in stored}

    def paint(record: Record) -> np.ndarray:
        encoded, count = _find(map_of, record, "proposals")
        chosen = segments.get(record.image_id, ())
        if len(chosen) != len(record.boxes_xyxy):
            raise TableError(
                "the labels table does not fit the records",
                field=f"boxes of {record.image_id}",
                value=len(chosen),
                expected=str(len(record.boxes_xyxy)),
            )
        with decoding(record.image_id, proposals.uri):
            superpixels = decode_superpixels(encoded)
        return paint_segments(
            superpixels,
            count,
            record.boxes_xyxy,
            record.class_ids,
            record.crowd,
            chosen,
            box_margin=assignment.box_margin,
            ignore_outside=assignment.ignore_outside and not decided,
            ignore_undecided=not decided,
        )

    return paint


def _find(map_of: Mapping[str, object], record: Record, kind: str):
    if record.image_id not in map_of:
        raise TableError(f"the {kind} table lacks an image of the records", value=record.image_id)
    return map_of[record.image_id]
