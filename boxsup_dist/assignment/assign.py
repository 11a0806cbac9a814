"""The assignment of one image and of one row group: which segment each box takes, as rows of the labels table.

Reads records, proposals and, after the warm-up, a network's scores; never the ground truth. The functions are pure: any
process computes the same rows, in any grouping of the images. A row group is assigned in steps, which may run at
different places:

    decode_row_group    bytes to images and superpixel maps
    score_row_group     images to sums, where the network is
    choose_row_group    sums and candidates to labels, on any CPU

or at once by `assign_row_group`: in the warm-up, which needs no network, and in epochs that refine, which need the
scores of all pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from boxsup_dist.assignment.consensus import Consensus, calibrated, find_consensus, find_undecided
from boxsup_dist.assignment.cost import BoxCosts, candidate_costs
from boxsup_dist.assignment.refine import find_cut, refine_segments
from boxsup_dist.assignment.select import NO_CHOICE, Choice, by_cost, choose
from boxsup_dist.assignment.sums import BoxSums, reduce_scores, scored_classes, select_scores
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import labels_table
from boxsup_dist.data.schema import (
    IGNORE_INDEX,
    Proposals,
    Record,
    iter_records,
    proposals_from_row,
    superpixels_from_row,
)
from boxsup_dist.errors import RecordError, decoding

LogProbs = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A network's log-softmax (C, H, W) of an image RGB (H, W, 3)."""
ScoresOf = Callable[[Sequence[NDArray[np.uint8]], Sequence[Sequence[int]]], Iterator[tuple[int, Tensor]]]
"""A network's scores of images RGB (H, W, 3) and, for each, the classes to return; `model.inference.class_scores`.

Yields the index of an image and its scores (L, H, W), every image once, in any order."""

# Supervision by boxes never opens gt_label_map: it is not among the columns that are read.
BOX_COLUMNS = ("image_id", "boxes_xyxy", "class_ids", "crowd")
RECORD_COLUMNS = (*BOX_COLUMNS, "image")
SCORED_COLUMNS = ("image_id", "superpixels", "num_superpixels")  # of proposals, for score_row_group
CHOSEN_COLUMNS = ("image_id", "num_superpixels", "membership", "proposal_boxes")  # for choose_row_group
PROPOSAL_COLUMNS = (*CHOSEN_COLUMNS, "superpixels")

_NO_SUPERPIXELS: NDArray[np.uint16] = np.array([], np.uint16)


class LabelRow(NamedTuple):
    """One row of the labels table: what one box took. The fields are the table's columns."""

    image_id: str
    box_index: int
    class_id: int
    proposal_index: int  # -1: no candidate
    superpixel_ids: NDArray[np.uint16]  # the segment; empty without a candidate
    undecided_ids: NDArray[np.uint16]  # superpixels whose pixels inside the box training ignores or completes
    undecided_probability: NDArray[np.float32]  # of each of them to belong to the object
    overlap_cost: float  # Eo; nan without a candidate
    regression_cost: float  # Er; nan without a candidate
    rank: int  # place in the order of choice, 0 is first; -1: no candidate


def assign_image(
    record: Record,
    proposals: Proposals,
    sums: Sequence[BoxSums],
    settings: AssignmentSettings,
    *,
    seed: int,
    epoch: int,
    image: NDArray[np.uint8] | None = None,
    log_probs: NDArray[np.float32] | None = None,
    static_map: NDArray[np.uint8] | None = None,
) -> list[LabelRow]:
    """Choose the segments of all boxes of one image.

    Args:
        record: The image's boxes.
        proposals: The image's proposals; with their superpixel map in epochs that refine (`refines`).
        sums: The network's scores, reduced for each box (`sums.reduce_scores`).
        settings: How a box takes its segment.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        image: RGB (H, W, 3), needed in epochs that refine.
        log_probs: The network's log-softmax (C, H, W), which votes in epochs that refine; None (warm-up) is no vote.
        static_map: Label map (H, W) that votes in epochs that refine; None is no vote.

    Returns:
        One row per box, in their order. A crowd, and a box without a candidate, has proposal -1 and no superpixel.
    """
    costs = candidate_costs(
        proposals,
        record.boxes_xyxy,
        sums,
        rank_weight=settings.rank_weight,
    )
    taken = [
        _take(box_costs, record, k, proposals, box_sums, settings, seed, epoch)
        for k, (box_costs, box_sums) in enumerate(zip(costs, sums, strict=True))
    ]
    choices, votes = [choice for choice, _ in taken], [vote for _, vote in taken]
    segments = [_segment(choice, proposals) for choice in choices]
    # Of every superpixel, its probability to belong to the object; None for a box without a segment.
    beliefs = [None if vote is None else calibrated(vote) for vote in votes]
    undecided = [
        _NO_SUPERPIXELS if vote is None else find_undecided(vote, segment, settings.ignore_undecided)
        for vote, segment in zip(votes, segments, strict=True)
    ]
    if refines(settings, epoch):
        assert image is not None
        refined = refine_segments(
            image,
            proposals.superpixels,
            record.boxes_xyxy,
            record.class_ids,
            votes,
            static_map=static_map,
            log_probs=log_probs,
        )
        for k, share in enumerate(refined):
            if share is not None:
                segments[k] = np.flatnonzero(share >= 0.5).astype(np.uint16)
                undecided[k] = find_cut(share, settings.ignore_undecided)
                beliefs[k] = share
    return [
        _row(record, k, choice, segment, left_open, belief)
        for k, (choice, segment, left_open, belief) in enumerate(
            zip(choices, segments, undecided, beliefs, strict=True)
        )
    ]


def _take(
    costs: BoxCosts,
    record: Record,
    k: int,
    proposals: Proposals,
    sums: BoxSums,
    settings: AssignmentSettings,
    seed: int,
    epoch: int,
) -> tuple[Choice, NDArray[np.float64] | None]:
    """The choice of box k, and the votes (S,) of its consensus; None without a consensus or a candidate."""
    if record.crowd[k]:
        return NO_CHOICE, None
    order, consensus = _order(costs, proposals, sums, settings)
    choice = choose(costs, order, top_k=settings.top_k, seed=seed, epoch=epoch, image_id=record.image_id, box_index=k)
    return choice, None if consensus is None or choice is NO_CHOICE else consensus.votes


def _segment(choice: Choice, proposals: Proposals) -> NDArray[np.uint16]:
    return _NO_SUPERPIXELS if choice.proposal_index < 0 else proposals.members(choice.proposal_index)


def _row(
    record: Record,
    k: int,
    choice: Choice,
    segment: NDArray[np.uint16],
    undecided: NDArray[np.uint16],
    belief: NDArray[np.float64] | None,
) -> LabelRow:
    return LabelRow(
        record.image_id,
        k,
        int(record.class_ids[k]),
        choice.proposal_index,
        segment,
        undecided,
        np.array([], np.float32) if belief is None else belief[undecided].astype(np.float32),
        choice.overlap_cost,
        choice.regression_cost,
        choice.rank,
    )


def refines(settings: AssignmentSettings, epoch: int) -> bool:
    """Whether the segments of this epoch (0 is the first) are refined (`refine.py`); the setting counts from 1."""
    return settings.refine_from_epoch is not None and epoch + 1 >= settings.refine_from_epoch


def repeats(settings: AssignmentSettings, epoch: int) -> bool:
    """Whether the labels of this epoch, from 0, are those of the epoch before, so that no assignment is needed.

    They are in the warm-up, whose costs do not change, unless the choice is a new draw or the refinement starts.
    """
    within = 0 < epoch < settings.warmup_epochs
    return within and settings.top_k == 1 and refines(settings, epoch) == refines(settings, epoch - 1)


def _order(
    costs: BoxCosts, proposals: Proposals, sums: BoxSums, settings: AssignmentSettings
) -> tuple[NDArray[np.int64], Consensus | None]:
    """Positions among the candidates in the order of choice, and the consensus that it comes from, if any."""
    if settings.consensus_temperature is None:
        return by_cost(costs, settings.regression_weight), None
    _, area = sums.dense(proposals.num_superpixels)
    consensus = find_consensus(
        costs,
        proposals,
        area,
        regression_weight=settings.regression_weight,
        temperature=settings.consensus_temperature,
    )
    return consensus.order, consensus


class Decoded(NamedTuple):
    """An image that the network scores for its boxes."""

    boxes_xyxy: NDArray[np.float32]  # (K, 4)
    class_ids: NDArray[np.int32]  # (K,)
    image: NDArray[np.uint8]  # RGB (H, W, 3)
    superpixels: NDArray[np.uint16]  # (H, W)
    num_superpixels: int


def decode_row_group(records: pa.Table, proposals: pa.Table) -> list[Decoded | None]:
    """Decode the images of a row group that have boxes, and their superpixel maps.

    Args:
        records: Rows of the records table with RECORD_COLUMNS.
        proposals: Rows of the proposals table with SCORED_COLUMNS, of the same images in the same order.

    Returns:
        For each image that has a box, in order, what `score_row_group` needs; None if it does not decode.
    """
    _check_paired(records, proposals)
    counts = proposals.column("num_superpixels").to_pylist()
    decoded: list[Decoded | None] = []
    for i, record in enumerate(iter_records(records)):
        if len(record.boxes_xyxy) == 0:
            continue
        try:
            image, superpixels = _decode(record), superpixels_from_row(proposals, i)
        except RecordError:
            decoded.append(None)
            continue
        assert image is not None
        decoded.append(Decoded(record.boxes_xyxy, record.class_ids, image, superpixels, counts[i]))
    return decoded


def score_row_group(
    scores_of: ScoresOf, decoded: Sequence[Decoded | None], settings: AssignmentSettings
) -> list[list[BoxSums] | None]:
    """Run the network on the images of a row group and reduce its scores for their boxes.

    Args:
        scores_of: Runs the network on images.
        decoded: From `decode_row_group`.
        settings: How a box takes its segment.

    Returns:
        The sums of the boxes of each image in `decoded`; None where that is None.
    """
    found = {i: one for i, one in enumerate(decoded) if one is not None}
    rows, given = list(found), list(found.values())
    sums: list[list[BoxSums] | None] = [None] * len(decoded)
    for j, scores in scores_of([one.image for one in given], [scored_classes(one.class_ids) for one in given]):
        one = given[j]
        maps = one.superpixels, one.num_superpixels
        sums[rows[j]] = reduce_scores(scores, *maps, one.boxes_xyxy, one.class_ids, settings)
    return sums


def choose_row_group(
    sums: Sequence[Sequence[BoxSums] | None],
    records: pa.Table,
    proposals: pa.Table,
    settings: AssignmentSettings,
    *,
    seed: int,
    epoch: int,
) -> pa.Table:
    """Labels of one row group from the sums of its boxes.

    Args:
        sums: Of each image that has a box, from `score_row_group`.
        records: Rows of the records table with BOX_COLUMNS.
        proposals: Rows of the proposals table with CHOSEN_COLUMNS, of the same images in the same order.
        settings: How a box takes its segment.
        seed: Seed of the run.
        epoch: Epoch, from 0; none that refines.

    Returns:
        Rows of the labels table, one per box, in the order of the records. The boxes of an image whose sums are None
        take no candidate.
    """
    _check_paired(records, proposals)
    rows: list[LabelRow] = []
    with_boxes = [(i, record) for i, record in enumerate(iter_records(records)) if len(record.boxes_xyxy)]
    for (i, record), of_boxes in zip(with_boxes, sums, strict=True):
        if of_boxes is None:
            rows += _no_choices(record)
            continue
        candidates = proposals_from_row(proposals, i, settings.max_candidates)
        rows += assign_image(record, candidates, of_boxes, settings, seed=seed, epoch=epoch)
    return labels_table([row._asdict() for row in rows])


def assign_row_group(
    log_probs_of: LogProbs | None,
    records: pa.Table,
    proposals: pa.Table,
    settings: AssignmentSettings,
    *,
    seed: int,
    epoch: int,
    label_maps: pa.Table | None = None,
) -> pa.Table:
    """Labels of one row group, at once.

    Images without a box are neither decoded nor predicted. If an image or its superpixel map does not decode, its boxes
    take no candidate; the training stream meets the same record and counts it.

    Args:
        log_probs_of: Runs the network on an image; None (warm-up) lets overlap alone decide.
        records: Rows of the records table with RECORD_COLUMNS; without `image` if no image is needed.
        proposals: Rows of the proposals table with PROPOSAL_COLUMNS, of the same images in the same order.
        settings: How a box takes its segment.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        label_maps: Rows of the static label maps of the same records, which vote in epochs that refine.

    Returns:
        Rows of the labels table, one per box, in the order of the records.
    """
    rows: list[LabelRow] = []
    static = [None] * records.num_rows if label_maps is None else label_maps.column("label_map").to_pylist()
    _check_paired(records, proposals)
    for i, (record, static_map) in enumerate(zip(iter_records(records), static, strict=True)):
        if len(record.boxes_xyxy) == 0:
            continue
        try:
            candidates, image = proposals_from_row(proposals, i, settings.max_candidates), _decode(record)
        except RecordError:
            rows += _no_choices(record)
            continue
        log_probs = None
        if log_probs_of is not None:
            assert image is not None
            log_probs = log_probs_of(image)
        sums = reduce_scores(
            None if log_probs is None else select_scores(log_probs, record.class_ids),
            candidates.superpixels,
            candidates.num_superpixels,
            record.boxes_xyxy,
            record.class_ids,
            settings,
        )
        rows += assign_image(
            record,
            candidates,
            sums,
            settings,
            seed=seed,
            epoch=epoch,
            image=image,
            log_probs=log_probs,
            static_map=None if static_map is None else _decode_votes(static_map),
        )
    return labels_table([row._asdict() for row in rows])


def _check_paired(records: pa.Table, proposals: pa.Table) -> None:
    assert records.column("image_id").equals(proposals.column("image_id")), "they are paired by the manifest"


def _decode(record: Record) -> NDArray[np.uint8] | None:
    """The image RGB (H, W, 3), None if its column was not read; RecordError if it does not decode."""
    with decoding(record.image_id):
        return None if record.image is None else decode_image(record.image)


def _no_choices(record: Record) -> list[LabelRow]:
    return [_row(record, k, NO_CHOICE, _NO_SUPERPIXELS, _NO_SUPERPIXELS, None) for k in range(len(record.boxes_xyxy))]


def _decode_votes(static_map: bytes) -> NDArray[np.uint8] | None:
    """A static label map; None if all of it is ignored, because the image failed when the label maps were made."""
    label_map = decode_png(static_map)
    return None if (label_map == IGNORE_INDEX).all() else label_map
