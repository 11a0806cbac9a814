"""Exports the label maps that an epoch trained on: what a task does with one unit of box-supervised records."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.labels import Labels
from boxsup_dist.data.painting import GRANTED_COLUMNS, Segment, paint_segments, painter
from boxsup_dist.data.palette import encode_palette_png
from boxsup_dist.data.schema import IGNORE_INDEX, Record, iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.data.superpixels import decode_superpixels
from boxsup_dist.export.coco import CocoImage, region
from boxsup_dist.export.files import output_uri
from boxsup_dist.io import storage

Undecided = Literal["ignore", "decided"]
FACTS = ("overlap_cost", "regression_cost", "rank", "proposal_index")


def export_unit(index: int, *, mixture: Mixture, labels: Labels, undecided: Undecided, out: str) -> list[CocoImage]:
    """Write OUT/label_maps/IMAGE_ID.png of a unit's training records; returns every box's segment and its facts.

    A box's segment is what the label map would show if it were alone; empty for a crowd and for a box without a
    candidate. `undecided` "ignore" leaves out, as training does, the pixels that the epoch ignored; "decided" gives
    them as they were chosen. No network is asked. Raises TableError where labels, records and proposals don't fit.
    """
    unit = mixture.units[index]
    decided = undecided == "decided"
    segments = labels.segments(index)
    paint = painter(unit, segments, mixture.assignment, decided=decided)
    facts = _facts(labels, index)
    rows = unit.source.records.read(unit.where, GRANTED_COLUMNS["box"]).take(pa.array(unit.rows, pa.int64()))
    assert unit.source.proposals is not None
    stored = unit.source.proposals.read(unit.where, ("image_id", "superpixels", "num_superpixels")).to_pylist()
    superpixels_of = {row["image_id"]: (row["superpixels"], row["num_superpixels"]) for row in stored}
    images = []
    for record in iter_records(rows):
        name = storage.safe_name(record.image_id, file=unit.source.records.uri, field="image_id")
        label_map = paint(record)
        storage.write_bytes(output_uri(out, "label_maps", name), encode_palette_png(label_map))
        encoded, count = superpixels_of[record.image_id]
        masks = box_masks(
            record,
            decode_superpixels(encoded),  # it has just been painted
            count,
            segments.get(record.image_id, []),
            mixture.assignment,
            decided=decided,
        )
        annotations = [
            {
                **region(mask, int(record.class_ids[k]), crowd=bool(record.crowd[k])),
                "bbox": _bbox(record.boxes_xyxy[k]),
                "box_index": k,
                **facts[record.image_id, k],
            }
            for k, mask in enumerate(masks)
        ]
        images.append(CocoImage(record.image_id, record.height, record.width, annotations))
    return images


def box_masks(
    record: Record,
    superpixels: np.ndarray,
    num_superpixels: int,
    segments: list[Segment | None],
    assignment: AssignmentSettings,
    *,
    decided: bool,
) -> list[np.ndarray]:
    """Mask bool (H, W) of every box's segment alone; painted larger boxes first they make the label map."""
    masks = []
    for k, segment in enumerate(segments):
        alone = paint_segments(
            superpixels,
            num_superpixels,
            record.boxes_xyxy[k : k + 1],
            record.class_ids[k : k + 1],
            record.crowd[k : k + 1],
            [segment],
            box_margin=assignment.box_margin,
            ignore_outside=False,
            ignore_undecided=not decided,
        )
        masks.append((alone != 0) & (alone != IGNORE_INDEX))
    return masks


def _facts(labels: Labels, index: int) -> dict[tuple[str, int], dict[str, Any]]:
    """(image_id, box_index) -> costs, rank and proposal of the choice; a cost that is no number is null."""
    start, stop = labels.offsets[index : index + 2]
    part: pa.Table = labels.table.slice(start, stop - start)
    return {
        (row["image_id"], row["box_index"]): {name: _number(row[name]) for name in FACTS}
        for row in part.select(("image_id", "box_index", *FACTS)).to_pylist()
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bbox(box_xyxy: np.ndarray) -> list[float]:
    """COCO's form: x, y, width, height."""
    x0, y0, x1, y1 = box_xyxy.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
