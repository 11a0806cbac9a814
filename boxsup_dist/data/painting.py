"""Label maps: what each supervision paints, and which columns of a record it may read.

Only this file decides which columns of a record a supervision reads (GRANTED_COLUMNS) and what it paints (`painter`).
A segment is a set of superpixel ids and is painted by one lookup, `lut[superpixels]`, so no mask is stored.

To add a supervision:

1. Add its name to `Supervision` in config/__init__.py; if it needs a partner table, also to `SourceSettings.check`.
2. Grant its columns in GRANTED_COLUMNS.
3. Return its painter in `painter`: a function from a Record to a label map, uint8 (H, W).
4. Add what it paints to EXPECTED in tests/unit/data/test_painting.py; the tests there then cover it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.config import AssignmentSettings, Supervision
from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, Record
from boxsup_dist.data.sources import Unit
from boxsup_dist.data.superpixels import decode_superpixels
from boxsup_dist.data.tables import Table
from boxsup_dist.errors import TableError, decoding

CERTAIN = 255  # of a prior: the label is certain
PRIOR_STEPS = 254  # a prior is a probability in this many steps


class Segment(NamedTuple):
    """The segment that was chosen for one box."""

    superpixel_ids: NDArray[np.uint16]  # (n,)
    undecided_ids: NDArray[np.uint16]  # (m,), superpixels whose pixels inside the box are ignored or completed
    undecided_probability: NDArray[np.float32] | None = None  # (m,), of each to belong to the object; for priors


Painter = Callable[[Record], NDArray[np.uint8]]
"""Paints the label map (H, W) of one record."""

Segments = Mapping[str, Sequence[Segment | None]]
"""image_id -> chosen segment by box_index; None for a box without a candidate."""

BOX_COLUMNS = ("height", "width", "boxes_xyxy", "class_ids", "crowd")
GRANTED_COLUMNS: dict[Supervision, tuple[str, ...]] = {
    "mask": ("image_id", "gt_label_map"),
    "rectangles": ("image_id", *BOX_COLUMNS),
    "grabcut": ("image_id",),
    "wssl": ("image_id",),
    "label_maps": ("image_id",),
    "wssl_em": ("image_id", *BOX_COLUMNS),
    "box": ("image_id", *BOX_COLUMNS),
}
"""Columns of a record that the label map of each supervision may be made of."""


def painter(unit: Unit, segments: Segments, assignment: AssignmentSettings, *, decided: bool = False) -> Painter:
    """Return the painter of a unit's records; it reads only the columns that the unit's supervision grants.

    The label map of `wssl_em` is filled boxes: after the warm-up the training step lets the network decide inside them.

    Args:
        unit: The unit whose records will be painted; its partner table is read here.
        segments: The chosen segments of the unit's boxes; used by the supervision `box` only.
        assignment: The settings `box_margin` and `ignore_outside` of the run; used by `box` only.
        decided: Paint undecided and uncovered pixels with their chosen label instead of ignoring them. Training ignores
            them; measuring and exporting the labels may want them decided.

    Returns:
        A function that raises TableError if the partner table lacks the record's image or one of its boxes, and
        RecordError if the image's superpixel map does not decode.
    """
    supervision = unit.source.supervision
    if supervision == "mask":
        return _ground_truth
    if supervision in ("rectangles", "wssl_em"):
        return lambda record: paint_rectangles(
            (record.height, record.width), record.boxes_xyxy, record.class_ids, record.crowd
        )
    if supervision == "box":
        found = _segments_painter(unit, segments, assignment)
        return lambda record: found(record)(decided)
    label_maps = unit.source.label_maps
    assert label_maps is not None
    map_of = {row["image_id"]: row["label_map"] for row in label_maps.read(unit.where).to_pylist()}
    return lambda record: decode_png(_find(map_of, record, label_maps, unit.source.records))


class Prior(NamedTuple):
    """A label map in which the network completes some pixels."""

    label_map: NDArray[np.uint8]  # (H, W), the class that a doubtful pixel has or else is background
    prior: NDArray[np.uint8]  # (H, W), probability of this class in PRIOR_STEPS; CERTAIN: the pixel is not doubtful


def prior_painter(unit: Unit, segments: Segments, assignment: AssignmentSettings) -> Callable[[Record], Prior]:
    """Return a function that paints what the network completes. Arguments and errors are those of `painter`."""
    found = _segments_painter(unit, segments, assignment)

    def paint(record: Record) -> Prior:
        prior = np.full((record.height, record.width), CERTAIN, np.uint8)
        return Prior(found(record)(False, prior), prior)

    return paint


class Painted(NamedTuple):
    """Two label maps (H, W) of one record."""

    decided: NDArray[np.uint8]  # undecided and uncovered pixels as they were chosen
    trained: NDArray[np.uint8]  # with these pixels ignored, as training sees it


def both_painter(unit: Unit, segments: Segments, assignment: AssignmentSettings) -> Callable[[Record], Painted]:
    """Return a function that paints both maps of a record at once. Arguments and errors are those of `painter`."""
    if unit.source.supervision == "box":
        found = _segments_painter(unit, segments, assignment)
        return lambda record: Painted(*map(found(record), (True, False)))
    paint = painter(unit, segments, assignment)

    def same(record: Record) -> Painted:
        label_map = paint(record)
        return Painted(label_map, label_map)

    return same


def _ground_truth(record: Record) -> NDArray[np.uint8]:
    assert record.gt_label_map is not None
    return decode_png(record.gt_label_map)


def _segments_painter(
    unit: Unit, segments: Segments, assignment: AssignmentSettings
) -> Callable[[Record], Callable[..., NDArray[np.uint8]]]:
    """Of a record: a function from `decided` to its label map; superpixels are decoded once."""
    proposals = unit.source.proposals
    assert proposals is not None
    stored = proposals.read(unit.where, ("image_id", "superpixels", "num_superpixels")).to_pylist()
    map_of = {row["image_id"]: (row["superpixels"], row["num_superpixels"]) for row in stored}

    def opened(record: Record) -> Callable[..., NDArray[np.uint8]]:
        encoded, count = _find(map_of, record, proposals, unit.source.records)
        chosen = segments.get(record.image_id, ())
        if len(chosen) != len(record.boxes_xyxy):
            raise TableError(
                "labels and records differ in the number of boxes: use labels that were made from these records",
                file=unit.source.records.uri,
                field=f"boxes of {record.image_id}",
                value=len(chosen),
                expected=str(len(record.boxes_xyxy)),
            )
        with decoding(record.image_id, proposals.uri):
            superpixels = decode_superpixels(encoded)
        return lambda decided, prior=None: paint_segments(
            superpixels,
            count,
            record.boxes_xyxy,
            record.class_ids,
            record.crowd,
            chosen,
            box_margin=assignment.box_margin,
            ignore_outside=assignment.ignore_outside and not decided,
            ignore_undecided=not decided,
            prior=prior,
        )

    return opened


def _find(map_of: Mapping[str, Any], record: Record, partner: Table, records: Table) -> Any:
    if record.image_id not in map_of:
        raise TableError(
            f"the {partner.kind} table lacks the image {record.image_id}: build it again from {records.uri}",
            file=partner.uri,
            field="image_id",
        )
    return map_of[record.image_id]


def pixel_box(
    box: NDArray[np.floating], height: int, width: int, *, margin: float | None = 0.0
) -> tuple[int, int, int, int]:
    """Return the smallest box of whole pixels that covers a box, clipped to the image.

    Args:
        box: (4,) xyxy, 0-based and half-open.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        margin: Move each side outwards by this share of the box's width or height; None returns the whole image.

    Returns:
        x0, y0, x1, y1, half-open; a box beyond the image's border gives a box without pixels.
    """
    if margin is None:
        return 0, 0, width, height
    size, grown = (width, height), margin * (box[2:] - box[:2])
    x0, y0 = np.clip(np.floor(box[:2] - grown), 0, size).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(box[2:] + grown), 0, size).astype(int).tolist()
    return x0, y0, x1, y1


def front_order(boxes_xyxy: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the indices of boxes (K, 4) in the order of painting: larger boxes first, so smaller ones lie in front."""
    area = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    return np.argsort(-area, kind="stable")


def paint_rectangles(
    shape: tuple[int, int],
    boxes_xyxy: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    crowd: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Paint a label map of `shape` (H, W): every box (K, 4) is filled with its class (K,), a crowd's with IGNORE_INDEX.

    A pixel in two boxes belongs to the smaller one. Without boxes all is background.
    """
    label_map = np.full(shape, BACKGROUND, np.uint8)
    for k in front_order(boxes_xyxy):
        x0, y0, x1, y1 = pixel_box(boxes_xyxy[k], *shape)
        label_map[y0:y1, x0:x1] = IGNORE_INDEX if crowd[k] else class_ids[k]
    return label_map


def paint_segments(
    superpixels: NDArray[np.uint16],
    num_superpixels: int,
    boxes_xyxy: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    crowd: NDArray[np.bool_],
    segments: Sequence[Segment | None],
    *,
    box_margin: float | None,
    ignore_outside: bool,
    ignore_undecided: bool,
    prior: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Paint a label map (H, W) from the chosen segment of every box. Without boxes all is background.

    Args:
        superpixels: (H, W), ids 0..num_superpixels-1.
        num_superpixels: S.
        boxes_xyxy: (K, 4). Larger boxes are painted first: a pixel in two segments belongs to the smaller box.
        class_ids: (K,).
        crowd: (K,); the box of a crowd is ignored.
        segments: The chosen segment of each box; a box without a candidate (None) is ignored.
        box_margin: How far a segment may leave its box, as the `margin` of `pixel_box`; the rest is cut off.
        ignore_outside: Ignore the pixels of a box that no segment covers. The paper makes them background.
        ignore_undecided: Ignore the pixels of a segment's undecided superpixels inside its box.
        prior: (H, W), all CERTAIN, to fill in place as `Prior.prior`: undecided pixels then have the class of their box
            if only background lies behind them.
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
        x0, y0, x1, y1 = box
        behind = label_map[y0:y1, x0:x1].copy() if prior is not None else label_map
        _paint(label_map, superpixels, num_superpixels, segment.superpixel_ids, reach, class_ids[k])
        if prior is not None:
            _paint(prior, superpixels, num_superpixels, segment.superpixel_ids, reach, CERTAIN)
        if ignore_undecided:
            _paint(label_map, superpixels, num_superpixels, segment.undecided_ids, box, IGNORE_INDEX)
        if prior is not None:
            _paint_prior(label_map, prior, behind, superpixels, num_superpixels, segment, box, class_ids[k])
    return label_map


def _paint_prior(
    label_map: NDArray[np.uint8],
    prior: NDArray[np.uint8],
    behind: NDArray[np.uint8],
    superpixels: NDArray[np.uint16],
    num_superpixels: int,
    segment: Segment,
    window: tuple[int, int, int, int],
    class_id: int,
) -> None:
    """Give undecided pixels in front of background their class and prior, in place; `behind` is the window alone."""
    x0, y0, x1, y1 = window
    assert segment.undecided_probability is not None
    lut = np.full(num_superpixels, CERTAIN, np.uint8)
    lut[segment.undecided_ids] = np.round(PRIOR_STEPS * segment.undecided_probability)
    found = lut[superpixels[y0:y1, x0:x1]]
    is_undecided = found != CERTAIN
    is_open = is_undecided & (behind == BACKGROUND)  # else ignored: two boxes may have the pixel
    label_map[y0:y1, x0:x1][is_open] = class_id
    prior[y0:y1, x0:x1][is_undecided] = np.where(is_open, found, CERTAIN)[is_undecided]


def _paint(
    label_map: NDArray[np.uint8],
    superpixels: NDArray[np.uint16],
    num_superpixels: int,
    ids: NDArray[np.uint16],
    window: tuple[int, int, int, int],
    value: int,
) -> None:
    """Set the pixels of the superpixels `ids` inside a window x0, y0, x1, y1 to `value`, in place."""
    x0, y0, x1, y1 = window
    lut = np.zeros(num_superpixels, bool)
    lut[ids] = True
    label_map[y0:y1, x0:x1][lut[superpixels[y0:y1, x0:x1]]] = value
