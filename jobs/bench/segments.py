"""Measure what the masks of a promptable segmenter give the first labels, with noise in place of a segmenter.

    python -m jobs.bench segments --records T --proposals P

The noise is made of the ground truth's instance masks, three masks for every box. Compared are the labels of the first
epoch, which overlap alone decides (recipe `mini`): from the candidates of the proposals table, from the noisy masks,
and from both over common superpixels, as `build_proposals --also` makes them. No network is trained, so this says
nothing about later epochs, where the network has a say, and nothing about how good a real segmenter's masks are.

    exact      the ground truth: the best that masks can give
    eroded     8 % of the box's mean side is missing all around
    dilated    8 % too much all around
    shifted    by 10 % of the box's width and height, in any of four directions
    half       the upper, lower, left or right half is missing
    rectangle  the whole box: what overlap alone cannot tell from a perfect mask
    mixed      each of the three masks is eroded, dilated, shifted or half, by chance
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxsup_dist.assignment.assign import assign_image
from boxsup_dist.assignment.sums import reduce_scores
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data import rle
from boxsup_dist.data.painting import Painted, Segment, paint_segments, pixel_box
from boxsup_dist.data.schema import Proposals, Record, iter_records, proposals_from_table
from boxsup_dist.data.tables import Table, check_paired, open_table
from boxsup_dist.errors import TableError
from boxsup_dist.evaluation.confusion import mean_iou
from boxsup_dist.evaluation.units import UnitResult, label_unit
from boxsup_dist.proposals.encoding import encode, from_masks, merge
from boxsup_dist.reporting.text_table import format_table
from boxsup_dist.runs.recipes import RECIPES
from jobs.bench.rows import finish, row
from jobs.bench.settings import Segments

GOAL_POINTS = 3.0
KINDS = ("exact", "eroded", "dilated", "shifted", "half", "rectangle", "mixed")
DRAWN = ("shifted", "half", "mixed")  # the others are the same in every round
MIXED = ("eroded", "dilated", "shifted", "half")
MASKS_PER_BOX = 3
_COLUMNS = ("image_id", "height", "width", "boxes_xyxy", "class_ids", "crowd", "gt_label_map", "instance_masks")
Mask = NDArray[np.bool_]


@dataclass
class Sums:
    """Confusion matrices of one kind of noise in one round."""

    masks: UnitResult
    both: UnitResult


def main(settings: Segments) -> None:
    """Measure, write OUT/summary.json, and print a row per kind of noise and the goal."""
    records, proposals = open_table(settings.records, "records"), open_table(settings.proposals, "proposals")
    check_paired(records, proposals)
    if not records.counts.get("with_instances", 0):
        raise TableError("no record has instance masks", file=records.uri, field="instance_masks")
    num_classes, method = len(records.classes), proposals.settings["method"]
    assignment = RECIPES["mini"]("unused", (), None).assignment
    empty = UnitResult.empty(num_classes)
    alone = sum((labels_of(rows, found, assignment, num_classes) for rows, found in _pairs(records, proposals)), empty)
    table: list[dict[str, Any]] = []
    gains: list[float] = []
    for kind in KINDS:
        rounds = []
        for seed in range(settings.rounds if kind in DRAWN else 1):
            total = Sums(empty, empty)
            for rows, found in _pairs(records, proposals):
                masks = noisy_proposals(rows, kind, seed)
                total.masks += labels_of(rows, masks, assignment, num_classes)
                both = [merge(own, other) for own, other in zip(masks, found, strict=True)]
                total.both += labels_of(rows, both, assignment, num_classes)
            rounds.append([100 * mean_iou(result.confusion) for result in (total.masks, total.both)])
        only, both_iou = np.mean(rounds, 0)
        base = 100 * mean_iou(alone.confusion)
        table.append({"noise": kind, f"{method} alone": base, "masks alone": only, "both": both_iou})
        if kind == "mixed":
            gains = [both - base for _, both in rounds]
    print(format_table(table, f"label mean IoU of the first epoch, {alone.num_images} images"))
    facts = {"label_mean_iou": table, "num_images": alone.num_images, "rounds": settings.rounds}
    facts |= {"records": settings.records, "proposals": settings.proposals}
    name = f"label mean IoU of the first epoch, {method} with noisy masks against without"
    finish(settings, "segments", [row(name, "points", gains, GOAL_POINTS)], facts)


def _pairs(records: Table, proposals: Table) -> Iterator[tuple[pa.Table, list[Proposals]]]:
    """The row groups of both tables."""
    for where in records.row_groups():
        yield records.read(where, _COLUMNS), proposals_from_table(proposals.read(where))


def labels_of(
    records: pa.Table, proposals: Sequence[Proposals], assignment: AssignmentSettings, num_classes: int
) -> UnitResult:
    """Confusion matrix of the labels that overlap alone gives the boxes of some records, against ground truth."""
    of_image = {found.image_id: found for found in proposals}

    def paint(record: Record) -> Painted:
        found = of_image[record.image_id]
        maps = found.superpixels, found.num_superpixels
        sums = reduce_scores(None, *maps, record.boxes_xyxy, record.class_ids, assignment)
        chosen = assign_image(record, found, sums, assignment, seed=0, epoch=0)
        segments = [
            Segment(taken.superpixel_ids, taken.undecided_ids) if taken.proposal_index >= 0 else None
            for taken in chosen
        ]
        decided = paint_segments(
            *maps,
            record.boxes_xyxy,
            record.class_ids,
            record.crowd,
            segments,
            box_margin=assignment.box_margin,
            ignore_outside=False,
            ignore_undecided=False,
        )
        return Painted(decided, decided)

    return label_unit(paint, records, num_classes).decided


def noisy_proposals(records: pa.Table, kind: str, seed: int) -> list[Proposals]:
    """The proposals of some records, made of three noisy masks for every box but those of crowds."""
    found = []
    for record in iter_records(records):
        rng = np.random.default_rng([seed, *record.image_id.encode()])
        masks: list[tuple[Mask, float | None]] = []
        for k, counts in enumerate(record.instance_masks or ()):
            if record.crowd[k]:
                continue
            exact = rle.decode(counts, record.height, record.width)
            box = pixel_box(record.boxes_xyxy[k], record.height, record.width)
            for _ in range(MASKS_PER_BOX):
                one = MIXED[rng.integers(len(MIXED))] if kind == "mixed" else kind
                masks.append((noisy(exact, box, one, rng), float(rng.random())))
        shape = (record.height, record.width)
        found.append(encode(from_masks(masks, shape=shape), image_id=record.image_id))
    return found


def noisy(mask: Mask, box: tuple[int, int, int, int], kind: str, rng: np.random.Generator) -> Mask:
    """A mask (H, W) with one kind of noise; `box` is the box of its object in whole pixels."""
    x0, y0, x1, y1 = box
    if kind in ("eroded", "dilated"):
        side = 2 * max(1, round(0.08 * ((x1 - x0) * (y1 - y0)) ** 0.5)) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        change = cv2.erode if kind == "eroded" else cv2.dilate
        return np.asarray(change(mask.astype(np.uint8), disc), bool)
    if kind == "shifted":
        dx, dy = (round(0.1 * size * rng.choice((-1, 1))) for size in (x1 - x0, y1 - y0))
        moved = cv2.warpAffine(mask.astype(np.uint8), np.array([[1.0, 0, dx], [0, 1, dy]]), mask.shape[::-1])
        return np.asarray(moved, bool)
    changed = mask.copy()
    if kind == "half":
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        halves = (np.s_[:y, :], np.s_[y:, :], np.s_[:, :x], np.s_[:, x:])
        changed[halves[rng.integers(4)]] = False
    if kind == "rectangle":
        changed[y0:y1, x0:x1] = True
    return changed
