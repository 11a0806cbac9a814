"""Measures a proposals table against the ground truth of its records with Ray, one task per row group.

Reads the annotation columns of the records and the whole proposals; keeps sums and a few numbers per image. Guarantees:
the same metrics on any number of CPUs, because row groups are added up in their order.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.data import rle
from boxsup_dist.data.schema import Proposals, iter_records, proposals_from_table
from boxsup_dist.data.tables import RowGroup, Table, check_paired, encode_shard
from boxsup_dist.distributed import session
from boxsup_dist.distributed.crashes import name_rows
from boxsup_dist.distributed.ordered import map_units
from boxsup_dist.errors import TableError
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.proposals import quality

CURVE_CUTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, quality.ALL)  # all of quality.CUTS are among them
MASKS_SAMPLED = 200  # candidates of an image that are also encoded as masks, to compare sizes
LONE_BOXES = "class masks in lone boxes"  # objects that count where records have no instance masks
HALVES = ("even", "odd")  # of the images, by their number in the table
_COLUMNS = ("image_id", "height", "width", "boxes_xyxy", "class_ids", "crowd", "gt_label_map", "instance_masks")


@dataclass
class Measured:
    """Sums over images, and numbers of each image; parts of a table add up."""

    tallies: NDArray[np.float64]  # (2 halves, C, len(CURVE_CUTS), sums)
    num_candidates: list[list[int]]  # of each image of each half
    num_bytes: list[float]  # stored bytes of each image
    column_bytes: Counter[str] = field(default_factory=Counter)  # stored bytes of all images
    storage: list[dict[str, float]] = field(default_factory=list)  # of the images whose masks were also encoded

    @classmethod
    def nothing(cls, num_classes: int) -> Measured:
        """The measurement of no image."""
        empty = quality.tally(quality.Overlaps(*[np.zeros((0, len(CURVE_CUTS)))] * 3), np.zeros(0, int), num_classes)
        return cls(np.stack([empty] * len(HALVES)), [[] for _ in HALVES], [])

    def add(self, other: Measured) -> None:
        """Add another part of the table."""
        self.tallies += other.tallies
        for mine, theirs in zip(self.num_candidates, other.num_candidates, strict=True):
            mine += theirs
        self.num_bytes += other.num_bytes
        self.column_bytes += other.column_bytes
        self.storage += other.storage


def measure(
    records: Table, proposals: Table, *, num_storage_images: int = 0, num_cpus: int | None = None
) -> dict[str, Any]:
    """The whole quality report as JSON values.

    Args:
        records: Records with ground-truth masks.
        proposals: Proposals made from these records.
        num_storage_images: About how many images, evenly spaced, are also encoded as RLE and PNG masks, to compare
            sizes. 0: none.
        num_cpus: CPUs of a local Ray session, as in `session.start`.

    Raises:
        TableError: The proposals were made from other records, or no record has a mask.
    """
    check_paired(records, proposals)
    if not records.counts.get("with_mask", 0):
        raise TableError("no record has a mask to compare with", file=records.uri, field="gt_label_map")
    session.start(num_cpus)
    total = Measured.nothing(len(records.classes))
    compare_every = -(-records.num_rows // num_storage_images) if num_storage_images else 0
    units = _units(records)
    parts = map_units(
        _measure_unit,
        units,
        on_lost=name_rows(lambda unit: (records, unit.where)),
        records=records,
        proposals=proposals,
        compare_every=compare_every,
    )
    with ProgressMeter("proposal quality", len(units)) as progress:
        for unit, part in zip(units, parts, strict=True):
            total.add(part)
            progress.advance(unit.where.num_rows)
    with_instances = records.counts.get("with_instances", 0)
    kinds = [("instance masks", with_instances > 0), (LONE_BOXES, with_instances < records.num_rows)]
    return report(total, proposals) | {
        "objects": ", else ".join(kind for kind, is_there in kinds if is_there),
        "num_annotated_objects": records.counts["boxes"] - records.counts.get("crowd", 0),
    }


class _Unit(NamedTuple):
    """A row group, and the number of its first image in the table."""

    where: RowGroup
    first_row: int


def _units(records: Table) -> list[_Unit]:
    row_groups = records.row_groups()
    first_rows = accumulate((where.num_rows for where in row_groups[:-1]), initial=0)
    return [_Unit(where, first) for where, first in zip(row_groups, first_rows, strict=True)]


def _measure_unit(unit: _Unit, *, records: Table, proposals: Table, compare_every: int) -> Measured:
    return measure_row_group(records, proposals, unit.where, unit.first_row, compare_every)


def measure_row_group(
    records: Table, proposals: Table, where: RowGroup, first_row: int, compare_every: int = 0
) -> Measured:
    """Quality of one row group; images without a mask are left out.

    Args:
        records: The records.
        proposals: Their proposals.
        where: The row group, which both tables have.
        first_row: Number of its first image in the table.
        compare_every: Also measure the other encodings of every image whose number is a multiple of this. 0: of none.
    """
    rows = proposals.read(where)
    total = Measured.nothing(len(records.classes))
    total.column_bytes.update(proposals.row_group_bytes(where))
    row_bytes = stored_bytes(rows, total.column_bytes.total())
    for i, record in enumerate(iter_records(records.read(where, _COLUMNS))):
        objects = quality.objects_of(record)
        if objects is None:
            continue
        found = proposals_from_table(rows.slice(i, 1))[0]
        half = (first_row + i) % 2
        best = quality.best_overlaps(found, objects.masks, CURVE_CUTS, objects.valid)
        total.tallies[half] += quality.tally(best, objects.class_ids, len(records.classes))
        total.num_candidates[half].append(len(found))
        total.num_bytes.append(row_bytes[i])
        if compare_every and (first_row + i) % compare_every == 0:
            total.storage.append({"stored": row_bytes[i]} | mask_bytes(found))
    return total


def stored_bytes(rows: pa.Table, num_bytes: int) -> list[float]:
    """The share of each image in the `num_bytes` of a stored row group, in proportion to its row stored alone."""
    alone = [len(encode_shard(rows.slice(i, 1).combine_chunks(), "proposals", 1)) for i in range(rows.num_rows)]
    return [num_bytes * size / sum(alone) for size in alone]


def mask_bytes(proposals: Proposals) -> dict[str, float]:
    """Bytes of the candidates of an image, stored one by one as COCO RLE and as 1-bit PNG.

    At most MASKS_SAMPLED candidates, evenly spaced, are encoded and the sizes scaled up: ten thousand would take a
    minute.
    """
    chosen = range(0, len(proposals), max(1, math.ceil(len(proposals) / MASKS_SAMPLED)))
    coco_rle = png = 0
    for j in chosen:
        inside = np.zeros(proposals.num_superpixels, bool)
        inside[proposals.members(j)] = True
        mask = inside[proposals.superpixels]
        coco_rle += len(rle.encode(mask))
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, format="PNG")
        png += buffer.tell()
    scale = len(proposals) / max(len(chosen), 1)
    return {"coco_rle": coco_rle * scale, "png": png * scale}


def report(total: Measured, proposals: Table) -> dict[str, Any]:
    """The measurements of a proposals table as JSON values."""
    counts = [np.array(part, np.int64) for part in total.num_candidates]
    curve = quality.metrics(total.tallies.sum(0), np.concatenate(counts), CURVE_CUTS)
    wanted = [name for name, cut in zip(curve, CURVE_CUTS, strict=True) if cut in quality.CUTS]
    halves = {}
    for half, name in enumerate(HALVES):
        found = quality.metrics(total.tallies[half], counts[half], CURVE_CUTS)
        halves[name] = {cut: found[cut] for cut in wanted}
    times_ms = [ms for shard in proposals.shards for ms in shard.row_ms]
    return {
        "method": proposals.settings["method"],
        "num_images": sum(map(len, counts)),
        "num_objects": int(total.tallies[..., 0, 0].sum()),
        "cuts": {name: curve[name] for name in wanted},
        "halves": halves,
        "curve": list(curve.values()),
        "bytes_per_image": quality.distribution(total.num_bytes),
        "bytes_by_column": {
            name: round(count / proposals.num_rows, 1) for name, count in total.column_bytes.most_common()
        },
        "storage": _storage(total.storage),
        "seconds_per_image": quality.distribution(np.array(times_ms) / 1000) if times_ms else None,
    }


def _storage(compared: Sequence[dict[str, float]]) -> dict[str, Any] | None:
    """Mean bytes per image of the same candidates in each encoding; None if no image was compared."""
    if not compared:
        return None
    means = {f"{name}_bytes": round(float(np.mean([c[name] for c in compared]))) for name in compared[0]}
    return {"num_images": len(compared), **means}
