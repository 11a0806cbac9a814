"""Which boxes are probably wrong: what a trained network and the labels over the epochs say about each given box.

Four signs, each a number in 0..1, and one list of what has no box at all:

- `overlap`: the chosen segment never fits the box well. Median over the epochs of the overlap cost, 1 - IoU of the
  box with the tight box of its segment.
- `fit`: the network sees the object elsewhere. 1 - IoU of the box with the tight box of the pixels that are predicted
  as its class in and around it.
- `denial`: the network sees another class. 1 - mean probability of the box's class over its segment.
- a region that is predicted as a class where no box of this class is: an object without a box.

A network fails at small boxes anyway, so `doubts` compares each sign with those of other boxes of about the same size
before it joins them into one number to sort by. It is no probability: a person looks at the first boxes of the list.
jobs.spoilt_boxes measures how many of these are wrong; docs/gallery.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import BACKGROUND, Record

NUM_ALIKE = 150  # boxes of similar size that a box is compared with
AROUND = 0.5  # share of a box's sides by which its surroundings reach beyond it
LEAST_SHARE = 0.01  # of the image: smaller regions without a box are not named
LEAST_SIDE_PX = 24
SURE = 0.3  # mean probability from which a reason names a class, and below which it denies the box's
BAD_FIT = 0.5  # 1 - IoU from which a reason says that a box fits badly
COVERED_SHARE = 0.25  # a region that lies in boxes of its class by this share has a box
OTHERS_SHARE = 0.5  # one that lies in boxes of other classes by this share is what their denial tells


@dataclass(frozen=True)
class Suspicion:
    """What speaks against one box, or for an object without a box."""

    box_index: int | None  # None: a region without a box
    class_id: int
    box: tuple[float, float, float, float]  # xyxy; of a region its tight box
    overlap: float
    fit: float
    denial: float
    rival: int  # the class that the network prefers in the segment; the box's own class if it prefers none
    rival_share: float  # mean probability of the rival there

    @property
    def shorter_side(self) -> float:
        """Of the box, in pixels."""
        x0, y0, x1, y1 = self.box
        return min(x1 - x0, y1 - y0)


def doubts(entries: Sequence[Suspicion]) -> list[float]:
    """The doubt of each entry, 0..1, the larger the more suspicious.

    Of a box: 1 - the geometric mean of three shares, for each sign the share of the NUM_ALIKE boxes of the most similar
    size whose sign is at least as strong (half of those that are equal). Of a region without a box: the mean
    probability of its class.
    """
    found = [entry.rival_share for entry in entries]
    boxes = [n for n, entry in enumerate(entries) if entry.box_index is not None]
    if not boxes:
        return found
    order = sorted(boxes, key=lambda n: entries[n].shorter_side)
    signs = np.array([(entries[n].overlap, entries[n].fit, entries[n].denial) for n in order])
    width = min(NUM_ALIKE, len(order))
    for place, n in enumerate(order):
        start = min(max(place - width // 2, 0), len(order) - width)
        alike = signs[start : start + width]
        stronger = (alike > signs[place]).sum(0) + (alike == signs[place]).sum(0) / 2
        found[n] = float(1 - np.exp(np.log(stronger / width).mean()))
    return found


def suspect_boxes(
    record: Record,
    probs: NDArray[np.float32],
    label_maps: NDArray[np.uint8] | None,
    overlap_costs: NDArray[np.float64],
) -> list[Suspicion]:
    """Judge the boxes of an image; those of crowds are left out.

    Args:
        record: Its size and boxes.
        probs: Class probabilities of the trained network, (C, H, W).
        label_maps: The newest label map (H, W), for the pixels of the segments; None: the whole boxes count.
        overlap_costs: Of the chosen segments, (epochs, K); nan for a box without a candidate in an epoch.

    Returns:
        One entry per box, in their order.
    """
    prediction = probs.argmax(0)
    entries = []
    for k in np.flatnonzero(~record.crowd).tolist():
        box, class_id = record.boxes_xyxy[k], int(record.class_ids[k])
        x0, y0, x1, y1 = pixel_box(box, record.height, record.width)
        inside = probs[:, y0:y1, x0:x1]
        segment = np.ones(inside.shape[1:], bool)
        if label_maps is not None and (label_maps[y0:y1, x0:x1] == class_id).any():
            segment = label_maps[y0:y1, x0:x1] == class_id
        means = inside[:, segment].mean(1) if segment.size else np.zeros(len(probs))
        objects = np.delete(np.arange(len(probs)), BACKGROUND)
        rival = int(objects[means[objects].argmax()])
        costs = overlap_costs[:, k] if len(overlap_costs) else np.empty(0)
        costs = np.where(np.isnan(costs), 1.0, costs)
        entries.append(
            Suspicion(
                k,
                class_id,
                tuple(float(value) for value in box),  # type: ignore[arg-type]  # four of them
                float(np.median(costs)) if len(costs) else 0.0,
                1 - _fit(record, k, prediction == class_id),
                1 - float(means[class_id]),
                rival,
                float(means[rival]),
            )
        )
    return entries


def _fit(record: Record, k: int, is_class: NDArray[np.bool_]) -> float:
    """IoU of a box with the tight box of a class's pixels in and around it that lie in no other box of the class."""
    x0, y0, x1, y1 = pixel_box(record.boxes_xyxy[k], record.height, record.width)
    around = pixel_box(record.boxes_xyxy[k], record.height, record.width, margin=AROUND)
    left, top, right, bottom = around
    mask = is_class[top:bottom, left:right].copy()
    inside = mask[y0 - top : y1 - top, x0 - left : x1 - left].copy()
    for other in np.flatnonzero(record.class_ids == record.class_ids[k]):
        if other != k:
            a0, b0, a1, b1 = pixel_box(record.boxes_xyxy[other], record.height, record.width, margin=0.1)
            mask[max(b0 - top, 0) : max(b1 - top, 0), max(a0 - left, 0) : max(a1 - left, 0)] = False
    mask[y0 - top : y1 - top, x0 - left : x1 - left] = inside
    found = _tight_box(mask)
    if found is None:
        return 0.0
    a0, b0, a1, b1 = found[0] + left, found[1] + top, found[2] + left, found[3] + top
    shared = max(min(x1, a1) - max(x0, a0), 0) * max(min(y1, b1) - max(y0, b0), 0)
    return shared / max((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - shared, 1)


def _tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def find_missing(record: Record, probs: NDArray[np.float32]) -> list[Suspicion]:
    """Regions of the prediction that no box of their class explains: objects without a box.

    Args:
        record: Its size and boxes; a crowd's box explains its class too.
        probs: Class probabilities of the trained network, (C, H, W).
    """
    prediction = probs.argmax(0)
    boxed = _inside(record, np.ones(len(record.class_ids), bool))
    found = []
    for class_id in np.unique(prediction):
        if class_id == BACKGROUND:
            continue
        covered = _inside(record, record.class_ids == class_id)
        regions, count = ndimage.label(prediction == class_id)
        for number, place in enumerate(ndimage.find_objects(regions, count), 1):
            rows, columns = place
            region = regions[place] == number
            sides = (columns.stop - columns.start, rows.stop - rows.start)
            if min(sides) < LEAST_SIDE_PX or region.sum() < LEAST_SHARE * prediction.size:
                continue
            if covered[place][region].mean() >= COVERED_SHARE or boxed[place][region].mean() >= OTHERS_SHARE:
                continue
            belief = float(probs[class_id][place][region].mean())
            box = tuple(float(v) for v in (columns.start, rows.start, columns.stop, rows.stop))
            found.append(Suspicion(None, int(class_id), box, 0.0, 0.0, 0.0, int(class_id), belief))  # type: ignore[arg-type]
    return found


def _inside(record: Record, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (H, W) in one of the chosen boxes."""
    inside = np.zeros((record.height, record.width), bool)
    for box in record.boxes_xyxy[chosen]:
        x0, y0, x1, y1 = pixel_box(box, record.height, record.width)
        inside[y0:y1, x0:x1] = True
    return inside


def describe(entry: Suspicion, class_names: Sequence[str]) -> str:
    """What speaks against a box, in words."""
    name = class_names[entry.class_id]
    if entry.box_index is None:
        return f"the network sees {name} here ({entry.rival_share:.0%}), and there is no box"
    reasons = []
    if _sees_another(entry):
        reasons.append(f"the network sees {class_names[entry.rival]} ({entry.rival_share:.0%})")
    if entry.denial > 1 - SURE:
        reasons.append(f"hardly any {name} ({1 - entry.denial:.0%})")
    if entry.fit == 1:
        reasons.append(f"it predicts no {name} in or around the box")
    elif entry.fit > BAD_FIT:
        reasons.append(f"what it predicts as {name} lies in another box (IoU {1 - entry.fit:.2f})")
    if entry.overlap > BAD_FIT:
        reasons.append(f"its segments do not fill the box (IoU {1 - entry.overlap:.2f})")
    return "; ".join(reasons) or "no strong sign"


def kind_of(entry: Suspicion) -> str:
    """What is probably wrong: "class" (the network sees another), "missing" (there is no box), else "place"."""
    if entry.box_index is None:
        return "missing"
    return "class" if _sees_another(entry) else "place"


def _sees_another(entry: Suspicion) -> bool:
    return entry.rival != entry.class_id and entry.rival_share >= SURE
