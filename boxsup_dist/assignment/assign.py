"""Assign a candidate segment to every box of an image, and of a row group: pure functions of network and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from boxsup_dist.assignment.consensus import Consensus, find_consensus, find_undecided
from boxsup_dist.assignment.cost import BoxCosts, candidate_costs
from boxsup_dist.assignment.refine import refine_segments
from boxsup_dist.assignment.select import NO_CHOICE, Choice, by_cost, choose
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.labels import labels_table
from boxsup_dist.data.schema import Proposals, Record, iter_records
from boxsup_dist.data.superpixels import proposals_from_row
from boxsup_dist.errors import RecordError, decoding

LogProbs = Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> float32 (C, H, W)

# Supervision by boxes never opens gt_label_map: it is not read here.
RECORD_COLUMNS = ("image_id", "image", "height", "width", "boxes_xyxy", "class_ids", "difficult", "crowd")


def assign_image(
    record: Record,
    proposals: Proposals,
    log_probs: np.ndarray | None,
    settings: AssignmentSettings,
    *,
    seed: int,
    epoch: int,
    image: np.ndarray | None = None,
    static_map: np.ndarray | None = None,
) -> list[dict]:
    """Rows of the labels table for one image, one a box; a crowd takes no candidate.

    `log_probs` None (warm-up) means that the overlap alone counts. `image`, uint8 RGB (H, W, 3), is needed in epochs
    that refine, where `static_map`, uint8 (H, W), votes too if there is one.
    """
    costs = candidate_costs(
        proposals,
        record.boxes_xyxy,
        record.class_ids,
        log_probs,
        form=settings.form,
        box_margin=settings.box_margin,
        logit_limit=settings.logit_limit,
        rank_weight=settings.rank_weight,
    )
    choices: list[Choice] = []
    votes: list[np.ndarray | None] = []  # None: the box takes no segment
    for k, box_costs in enumerate(costs):
        choice, consensus = NO_CHOICE, None
        if not record.crowd[k]:
            order, consensus = _order(box_costs, proposals, record.boxes_xyxy[k], settings)
            choice = choose(
                box_costs,
                order,
                top_k=settings.top_k,
                seed=seed,
                epoch=epoch,
                image_id=record.image_id,
                box_index=k,
            )
        choices.append(choice)
        votes.append(consensus.probability if consensus is not None and choice.proposal_index >= 0 else None)
    segments = [
        proposals.members(choice.proposal_index) if choice.proposal_index >= 0 else np.empty(0, np.uint16)
        for choice in choices
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
    rows = []
    for k, (choice, segment, vote) in enumerate(zip(choices, segments, votes, strict=True)):
        undecided = list[int]()
        if vote is not None and settings.ignore_undecided is not None:
            undecided = find_undecided(vote, segment, settings.ignore_undecided).tolist()
        rows.append(_row(record, k, choice, segment, undecided))
    return rows


def _row(record: Record, box: int, choice: Choice, segment: np.ndarray, undecided: Sequence[int] = ()) -> dict:
    return {
        "image_id": record.image_id,
        "box_index": box,
        "class_id": int(record.class_ids[box]),
        "proposal_index": choice.proposal_index,
        "superpixel_ids": list(segment),
        "undecided_ids": list(undecided),
        "overlap_cost": choice.overlap_cost,
        "regression_cost": choice.regression_cost,
        "rank": choice.rank,
    }


def refines(settings: AssignmentSettings, epoch: int) -> bool:
    """Whether this epoch's segments are refined."""
    return settings.refine_from_epoch is not None and epoch + 1 >= settings.refine_from_epoch


def repeats(settings: AssignmentSettings, epoch: int) -> bool:
    """Whether this epoch's labels are those of the epoch before: in the warm-up, unless they are drawn anew."""
    within = 0 < epoch < settings.warmup_epochs
    return within and settings.top_k == 1 and refines(settings, epoch) == refines(settings, epoch - 1)


def _order(
    costs: BoxCosts, proposals: Proposals, box: np.ndarray, settings: AssignmentSettings
) -> tuple[np.ndarray, Consensus | None]:
    """Candidates in the order of choice, and the consensus that gave it."""
    if settings.consensus_temperature is None:
        return by_cost(costs, settings.regression_weight), None
    consensus = find_consensus(
        costs,
        proposals,
        box,
        regression_weight=settings.regression_weight,
        temperature=settings.consensus_temperature,
    )
    return consensus.order, consensus


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
    """Labels of a row group. `log_probs_of` runs the network; None assigns by overlap alone.

    `label_maps` are static ones of the same records, for epochs that refine. Images are decoded where they are needed;
    the boxes of one that does not decode, or whose superpixel map does not, take no candidate.
    """
    rows: list[dict] = []
    static = [None] * records.num_rows if label_maps is None else label_maps.column("label_map").to_pylist()
    assert records.column("image_id").equals(proposals.column("image_id")), "they are paired by the manifest"
    for i, (record, static_map) in enumerate(zip(iter_records(records), static, strict=True)):
        if len(record.boxes_xyxy) == 0:
            continue
        try:
            candidates = proposals_from_row(proposals, i, settings.max_candidates)
            with decoding(record.image_id):
                image = None if record.image is None else decode_image(record.image)
        except RecordError:  # the training stream meets it too, and counts it
            rows += [_row(record, k, NO_CHOICE, np.empty(0, np.uint16)) for k in range(len(record.boxes_xyxy))]
            continue
        log_probs = None
        if log_probs_of is not None:
            assert image is not None
            log_probs = log_probs_of(image)
        rows += assign_image(
            record,
            candidates,
            log_probs,
            settings,
            seed=seed,
            epoch=epoch,
            image=image,
            static_map=None if static_map is None else decode_png(static_map),
        )
    return labels_table(rows)
