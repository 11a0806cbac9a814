"""Reassigns all boxes of a mixture on the actor pool; one unit of work is one row group of a source's tables.

A member decodes images (`read_unit`) while it runs the network on those before and reduces its scores (`score_unit`).
The choice follows (`choose_units`), on any CPU of the cluster where the members are on GPUs: a GPU waits for neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import pyarrow as pa

from boxsup_dist.assignment.assign import (
    BOX_COLUMNS,
    CHOSEN_COLUMNS,
    PROPOSAL_COLUMNS,
    RECORD_COLUMNS,
    SCORED_COLUMNS,
    Decoded,
    assign_row_group,
    choose_row_group,
    decode_row_group,
    refines,
    score_row_group,
)
from boxsup_dist.assignment.sums import BoxSums
from boxsup_dist.data.labels import Labels, labels_table
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed.crashes import name_rows
from boxsup_dist.distributed.ordered import Progress
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.distributed.shared import Reference
from boxsup_dist.model.inference import class_scores, predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork

Read: TypeAlias = "tuple[int, list[Decoded | None] | None]"
"""A unit and its decoded images; None in epochs that need none or the scores of all pixels."""
Scored: TypeAlias = "list[list[BoxSums] | None] | pa.Table | None"
"""What a member makes of a unit: the sums of its images; its labels if the epoch refines; None in the warm-up."""


def read_unit(index: int, *, mixture: Mixture, epoch: int, **_: object) -> Read:
    """Read and decode the images of one unit that the run trains on. Other arguments are for what follows."""
    unit, settings = mixture.units[index], mixture.assignment
    assert unit.source.proposals is not None
    if epoch < settings.warmup_epochs or refines(settings, epoch):
        return index, None
    records = unit.trained(unit.source.records.read(unit.where, RECORD_COLUMNS))
    return index, decode_row_group(records, unit.trained(unit.source.proposals.read(unit.where, SCORED_COLUMNS)))


def score_unit(network: SegmentationNetwork, read: Read, *, mixture: Mixture, epoch: int, **_: object) -> Scored:
    """Run the network on the images of one unit. Other arguments are for what follows.

    In an epoch that refines, the labels are finished here: the refinement needs the scores of all pixels.
    """
    index, decoded = read
    unit, settings = mixture.units[index], mixture.assignment
    if decoded is not None:
        scores_of = partial(class_scores, network, normalise=settings.form == "image")
        return score_row_group(scores_of, decoded, settings)
    if not refines(settings, epoch):
        return None
    warm_up, label_maps = epoch < settings.warmup_epochs, unit.source.label_maps
    assert unit.source.proposals is not None
    return assign_row_group(
        None if warm_up else lambda image: predict_log_probs(network, image, network.device),
        unit.trained(unit.source.records.read(unit.where, RECORD_COLUMNS)),
        unit.trained(unit.source.proposals.read(unit.where, PROPOSAL_COLUMNS)),
        settings,
        seed=mixture.seed,
        epoch=epoch,
        label_maps=None if label_maps is None else unit.trained(label_maps.read(unit.where)),
    )


def choose_units(indices: Sequence[int], scored: Sequence[Scored], *, mixture: Mixture, epoch: int) -> list[pa.Table]:
    """Labels of units, as rows of the labels table, from what `score_unit` made of each."""
    return [choose_unit(index, made, mixture=mixture, epoch=epoch) for index, made in zip(indices, scored, strict=True)]


def choose_unit(index: int, scored: Scored, *, mixture: Mixture, epoch: int) -> pa.Table:
    """As choose_units, of one unit. Without sums (warm-up) overlap alone decides; no image is read."""
    if isinstance(scored, pa.Table):
        return scored
    unit, when = mixture.units[index], {"seed": mixture.seed, "epoch": epoch}
    assert unit.source.proposals is not None
    records = unit.trained(unit.source.records.read(unit.where, BOX_COLUMNS))
    columns = PROPOSAL_COLUMNS if scored is None else CHOSEN_COLUMNS
    proposals = unit.trained(unit.source.proposals.read(unit.where, columns))
    if scored is None:
        return assign_row_group(None, records, proposals, mixture.assignment, **when)
    return choose_row_group(scored, records, proposals, mixture.assignment, **when)


def reassign(
    pool: NetworkPool,
    mixture: Mixture,
    *,
    weights: Reference | None,
    epoch: int,
    choose_in_tasks: bool | None = None,
    on_progress: Progress | None = None,
) -> Labels:
    """Labels of every box that the run trains on from boxes; the same for any number of actors.

    Args:
        pool: Actors that predict and assign.
        mixture: The sources and the settings of the assignment.
        weights: Reference to the network's state dict; None keeps the network of the pool as it is.
        epoch: Epoch of the labels, from 0; decides warm-up, refinement and the random draws.
        choose_in_tasks: Whether the choice runs in tasks beside the members; None: if the members have GPUs. The labels
            are the same.
        on_progress: Called whenever units are finished.
    """
    chosen = mixture.with_supervision("box")
    parts = pool.map(
        score_unit,
        chosen,
        weights=weights,
        version=f"epoch-{epoch}",
        read=read_unit,
        then=choose_units,
        then_in_tasks=choose_in_tasks,
        on_progress=on_progress,
        on_lost=name_rows(mixture.place),
        mixture=mixture,
        epoch=epoch,
    )
    assigned = set(chosen)
    return Labels.concatenate(next(parts) if i in assigned else labels_table([]) for i in range(len(mixture.units)))
