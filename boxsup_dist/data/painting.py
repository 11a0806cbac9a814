"""Label maps: what each supervision paints, and which columns of a record it may open for that.

Every supervision is one branch of `painter`; nobody else decides which columns of a record may be opened. A segment is
a set of superpixel ids, painted by one lookup, `lut[superpixels]`: no mask is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from boxsup_dist.config import AssignmentSettings, Supervision
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, Record
from boxsup_dist.data.sources import Unit
from boxsup_dist.data.superpixels import decode_superpixels
from boxsup_dist.errors import TableError, decoding


class Segment(NamedTuple):
    """What a box took."""

    superpixel_ids: np.ndarray  # uint16 (n,)
    undecided_ids: np.ndarray  # uint16 (m,), superpixels whose pixels inside the box are ignored


Painter = Callable[[Record], np.ndarray]
"""Label map uint8 (H, W) of one record."""

Segments = Mapping[str, Sequence[Segment | None]]
"""By image_id, over box_index: the chosen segment, None where the box has no candidate."""

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


def pixel_box(box: np.ndarray, height: int, width: int, *, margin: float | None = 0.0) -> tuple[int, int, int, int]:
    """Integer box x0, y0, x1, y1 that covers the float box, inside the image; empty for a box beyond its border.

    `margin` moves each side outwards by this share of the box's width or height; None takes in the whole image.
    """
    if margin is None:
        return 0, 0, width, height
    size, grown = (width, height), margin * (box[2:] - box[:2])
    x0, y0 = np.clip(np.floor(box[:2] - grown), 0, size).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(box[2:] + grown), 0, size).astype(int).tolist()
    return x0, y0, x1, y1


def front_order(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Order in which boxes are painted: larger first, so that the smaller of two overlapping ones lies in front."""
    area = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    return np.argsort(-area, kind="stable")


def paint_rectangles(
    shape: tuple[int, int], boxes_xyxy: np.ndarray, class_ids: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """Label map uint8 (H, W) with every box filled by its class; crowds are ignored pixels."""
    label_map = np.full(shape, BACKGROUND, np.uint8)
    for k in front_order(boxes_xyxy):
        x0, y0, x1, y1 = pixel_box(boxes_xyxy[k], *shape)
        label_map[y0:y1, x0:x1] = IGNORE_INDEX if crowd[k] else class_ids[k]
    return label_map


def paint_segments(
    superpixels: np.ndarray,
    num_superpixels: int,
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    crowd: np.ndarray,
    segments: Sequence[Segment | None],
    *,
    box_margin: float | None,
    ignore_outside: bool,
    ignore_undecided: bool,
) -> np.ndarray:
    """Label map uint8 (H, W) from the chosen segment of every box.

    Larger boxes are painted first: a pixel in two segments belongs to the smaller box. `segments[k]` is what box k
    took, None where it has no candidate: its box is then ignored, as a crowd's box is. `box_margin` is how far a
    segment may leave its box (pixel_box). `ignore_outside` ignores the pixels of a box that no segment covers (the
    paper calls them background), `ignore_undecided` those of a segment's undecided superpixels inside its box.
    """
    shape = superpixels.shape
    label_map = np.full(shape, BACKGROUND, np.uint8)
    order = front_order(boxes_xyxy)
    for k in order:
        if ignore_outside or crowd[k] or segments[k] is None:
            x0, y0, x1, y1 = pixel_box(boxes_xyxy[k], *shape)
            label_map[y0:y1, x0:x1] = IGNORE_INDEX
    for k in order:
        segment = segments[k]
        if crowd[k] or segment is None:
            continue
        box = pixel_box(boxes_xyxy[k], *shape)
        reach = pixel_box(boxes_xyxy[k], *shape, margin=box_margin)
        _paint(label_map, superpixels, num_superpixels, segment.superpixel_ids, reach, class_ids[k])
        if ignore_undecided:
            _paint(label_map, superpixels, num_superpixels, segment.undecided_ids, box, IGNORE_INDEX)
    return label_map


def _paint(
    label_map: np.ndarray,
    superpixels: np.ndarray,
    num_superpixels: int,
    ids: np.ndarray,
    window: tuple[int, int, int, int],
    value: int,
) -> None:
    """Give the pixels of some superpixels inside a window a value, in place."""
    x0, y0, x1, y1 = window
    lut = np.zeros(num_superpixels, bool)
    lut[ids] = True
    label_map[y0:y1, x0:x1][lut[superpixels[y0:y1, x0:x1]]] = value
