"""Exports the label maps that an epoch trained on: what a task does with one unit of box-supervised records."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.labels import LabelsTable
from boxsup_dist.data.painting import GRANTED_COLUMNS, Segment, paint_segments, painter
from boxsup_dist.data.palette import encode_palette_png
from boxsup_dist.data.schema import IGNORE_INDEX, Record, iter_records
from boxsup_dist.data.sources import Mixture
from boxsup_dist.data.superpixels import decode_superpixels
from boxsup_dist.export.coco import CocoImage, region
from boxsup_dist.export.files import output_uri
from boxsup_dist.export.images import ending_of
from boxsup_dist.io import storage

Undecided = Literal["ignore", "decided"]
FACTS = ("overlap_cost", "regression_cost", "rank", "proposal_index")


def export_unit(
    index: int, *, mixture: Mixture, labels: LabelsTable, undecided: Undecided, out: str
) -> list[CocoImage]:
    """Write OUT/label_maps/IMAGE_ID.png of the training records of a unit.

    Args:
        index: Number of the unit in the mixture.
        mixture: The sources.
        labels: LabelsTable of the epoch.
        undecided: Pixels that the epoch ignored: "ignore" leaves them out as training does, "decided" paints them as
            they were chosen.
        out: Folder or URI.

    Returns:
        Each image with an annotation per box: its segment and why it was chosen. The segment is what the label map
        would show for this box alone; it is empty for a crowd and for a box without a candidate.

    Raises:
        TableError: Labels, records and proposals do not fit together.
    """
    unit = mixture.units[index]
    decided = undecided == "decided"
    segments = labels.segments(index)
    paint = painter(unit, segments, mixture.assignment, decided=decided)
    facts = _facts(labels, index)
    columns = tuple(dict.fromkeys(("image", *GRANTED_COLUMNS["box"])))
    rows = unit.trained(unit.source.records.read(unit.where, columns))
    assert unit.source.proposals is not None
    stored = unit.source.proposals.read(unit.where, ("image_id", "superpixels", "num_superpixels")).to_pylist()
    superpixels_of = {row["image_id"]: (row["superpixels"], row["num_superpixels"]) for row in stored}
    images = []
    for record in iter_records(rows):
        name = storage.safe_name(record.image_id, file=unit.source.records.uri, field="image_id")
        label_map = paint(record)
        storage.write_bytes(
            output_uri(out, "label_maps", name), encode_palette_png(label_map, unit.source.records.classes)
        )
        encoded, count = superpixels_of[record.image_id]
        masks = box_masks(
            record,
            decode_superpixels(encoded),
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
        ending = ending_of(record.image or b"")
        images.append(CocoImage(record.image_id, ending, record.height, record.width, annotations))
    return images


def box_masks(
    record: Record,
    superpixels: NDArray[np.uint16],
    num_superpixels: int,
    segments: list[Segment | None],
    assignment: AssignmentSettings,
    *,
    decided: bool,
) -> list[NDArray[np.bool_]]:
    """The segment of each box alone.

    Args:
        record: The image and its boxes.
        superpixels: Its superpixel map (H, W).
        num_superpixels: S.
        segments: The chosen segment of each box; None: no candidate.
        assignment: Settings of the assignment.
        decided: Whether undecided pixels are painted as they were chosen.

    Returns:
        A mask (H, W) per box. Painted from the largest box to the smallest they make the label map.
    """
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


def _facts(labels: LabelsTable, index: int) -> dict[tuple[str, int], dict[str, Any]]:
    """(image_id, box_index) -> costs, rank and proposal of the choice; a cost that is not finite is None."""
    return {
        (row["image_id"], row["box_index"]): {name: _number(row[name]) for name in FACTS}
        for row in labels.read(index, ("image_id", "box_index", *FACTS)).to_pylist()
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bbox(box_xyxy: NDArray[np.float32]) -> list[float]:
    """The box as COCO writes it: x, y, width, height."""
    x0, y0, x1, y1 = box_xyxy.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
