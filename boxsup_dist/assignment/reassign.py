"""Reassign all boxes of a records table on the actor pool: one unit of work is one row group of the tables."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import ray

from boxsup_dist.assignment.assign import RECORD_COLUMNS, assign_row_group
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.labels import Labels
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.tables import RowGroup, Table, check_paired


def assign_unit(
    network: SegmentationNetwork,
    where: RowGroup,
    *,
    records: Table,
    proposals: Table,
    settings: AssignmentSettings,
    seed: int,
    epoch: int,
) -> pa.Table:
    """Labels of one row group, an Arrow table. During the warm-up epochs neither network nor image is touched."""
    warm_up = epoch < settings.warmup_epochs
    columns = [name for name in RECORD_COLUMNS if not (warm_up and name == "image")]
    return assign_row_group(
        None if warm_up else lambda image: predict_log_probs(network, image, network.device),
        records.read(where, columns),
        proposals.read(where),
        settings,
        seed=seed,
        epoch=epoch,
    )


def reassign(
    pool: NetworkPool,
    records: Table,
    proposals: Table,
    settings: AssignmentSettings,
    *,
    weights: ray.ObjectRef | None,
    seed: int,
    epoch: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Labels:
    """Labels of every box with the given weights; the same for any number of actors."""
    check_paired(records, proposals)
    parts = pool.map(
        assign_unit,
        records.row_groups(),
        weights=weights,
        version=f"epoch-{epoch}",
        on_progress=on_progress,
        records=records,
        proposals=proposals,
        settings=settings,
        seed=seed,
        epoch=epoch,
    )
    return Labels.concatenate(list(parts))
