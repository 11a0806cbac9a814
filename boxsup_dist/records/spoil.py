"""A records table with some boxes made wrong on purpose, to measure how well wrong boxes are found.

Kinds of wrong boxes, as people make them: another class, shifted by half its side, of doubled size, and missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data import tables
from boxsup_dist.data.schema import Record, iter_records, records_to_table
from boxsup_dist.data.tables import Table
from boxsup_dist.io import storage
from boxsup_dist.records.reader import count_records

SpoilKind = Literal["class", "shifted", "doubled", "missing"]
KINDS: tuple[SpoilKind, ...] = get_args(SpoilKind)
SPOILT_FILE = "spoilt.json"
LEAST_CHANGE = 0.7  # a moved box that the image's border cuts back to this IoU or more with the old one is not wrong


@dataclass(frozen=True)
class Spoilt:
    """One box that was made wrong."""

    image_id: str
    kind: SpoilKind
    box_index: int | None  # in the spoilt record; None for a box that is missing there
    box: tuple[float, ...]  # xyxy of the wrong box; of a missing one, as it was


def spoil_table(records: Table, out: str, *, share: float, seed: int) -> tuple[Table, list[Spoilt]]:
    """Copy a records table with a share of its boxes made wrong, each kind equally often.

    Args:
        records: The table to copy.
        out: Folder or URI of the copy, which also gets spoilt.json.
        share: Share of all boxes to spoil, 0..1.
        seed: Of the draw.

    Returns:
        The copy, and what is wrong in it.
    """
    settings = {**records.settings, "spoilt_share": share, "spoilt_seed": seed, "spoilt_from": records.fingerprint}
    tables.begin(out, "records", settings)
    num_boxes = records.counts["boxes"]
    draw = np.random.default_rng(seed).permutation(num_boxes)[: round(share * num_boxes)]
    chosen = {int(position): KINDS[n % len(KINDS)] for n, position in enumerate(draw)}
    rng, found, shards, first = np.random.default_rng([seed, 1]), list[Spoilt](), [], 0
    for index, shard in enumerate(_shards(records)):
        spoilt_records = []
        for record in shard:
            kinds = {k: chosen[first + k] for k in range(len(record.class_ids)) if first + k in chosen}
            first += len(record.class_ids)
            changed, spoilt = spoil_record(record, kinds, len(records.classes), rng)
            spoilt_records.append(changed)
            found += spoilt
        shards.append(
            tables.write_shard(
                out,
                index,
                records_to_table(spoilt_records),
                "records",
                row_group_size=records.row_groups()[0].num_rows,
                counts=count_records(spoilt_records, records.classes),
            )
        )
    storage.write_json(storage.join(out, SPOILT_FILE), [vars(each) for each in found])
    return tables.publish(out, "records", settings, shards), found


def _shards(records: Table) -> Iterator[list[Record]]:
    for shard in records.read_shards(records_to_table([]).column_names):
        yield list(iter_records(shard))


def spoil_record(
    record: Record, kinds: dict[int, SpoilKind], num_classes: int, rng: np.random.Generator
) -> tuple[Record, list[Spoilt]]:
    """Make some boxes of a record wrong.

    Args:
        record: The record.
        kinds: What to do with which box.
        num_classes: C, with the background.
        rng: Draws the wrong classes and the directions.

    Returns:
        The record with wrong boxes, and what was done. A box that the image's border would keep nearly as it was gets
        another class instead.
    """
    boxes, class_ids = record.boxes_xyxy.copy(), record.class_ids.copy()
    done: dict[int, SpoilKind] = {}
    for k, kind in kinds.items():
        done[k] = kind
        if kind in ("shifted", "doubled"):
            moved = _moved(record.boxes_xyxy[k], kind, (record.height, record.width), rng)
            if moved is None:
                done[k] = "class"
            else:
                boxes[k] = moved
        if done[k] == "class":
            class_ids[k] = 1 + (class_ids[k] - 1 + rng.integers(1, num_classes - 1)) % (num_classes - 1)
    kept = [k for k in range(len(boxes)) if done.get(k) != "missing"]
    masks = record.instance_masks
    changed = replace(
        record,
        boxes_xyxy=boxes[kept],
        class_ids=class_ids[kept],
        difficult=record.difficult[kept],
        crowd=record.crowd[kept],
        instance_masks=None if masks is None else [masks[k] for k in kept],
    )
    spoilt = []
    for k, kind in done.items():
        index = None if kind == "missing" else kept.index(k)
        spoilt.append(Spoilt(record.image_id, kind, index, tuple(boxes[k].tolist())))
    return changed, spoilt


def _moved(
    box: NDArray[np.float32], kind: SpoilKind, shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float32] | None:
    """The box shifted by half its sides in a random direction, or doubled; None if it hardly changes."""
    sides = box[2:] - box[:2]
    limit = np.array([shape[1], shape[0]], np.float32)
    offsets = [np.array([x, y]) / 2 for x in (-1, 1) for y in (-1, 1)]
    moves = [(offsets[n] * sides, offsets[n] * sides) for n in rng.permutation(len(offsets))]
    for move_low, move_high in moves if kind == "shifted" else [(-sides / 2, sides / 2)]:
        low, high = box[:2] + move_low, box[2:] + move_high
        moved = np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)]).astype(np.float32)
        if (moved[2:] - moved[:2]).min() >= 4 and _iou(box, moved) < LEAST_CHANGE:
            return moved
    return None


def _iou(box: Sequence[float] | NDArray[Any], other: Sequence[float] | NDArray[Any]) -> float:
    a, b = np.asarray(box, float), np.asarray(other, float)
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))
