"""Reassign all boxes of a mixture on the actor pool: one unit of work is one row group of a source's tables."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import ray

from boxsup_dist.assignment.assign import RECORD_COLUMNS, assign_row_group
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.labels import Labels, labels_table
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork
from boxsup_dist.sources import Mixture


def assign_unit(network: SegmentationNetwork, index: int, *, mixture: Mixture, epoch: int) -> pa.Table:
    """Labels of one unit, an Arrow table. During the warm-up epochs neither network nor image is touched."""
    unit, settings = mixture.units[index], mixture.assignment
    assert unit.source.proposals is not None
    warm_up = epoch < settings.warmup_epochs
    columns = [name for name in RECORD_COLUMNS if not (warm_up and name == "image")]
    return assign_row_group(
        None if warm_up else lambda image: predict_log_probs(network, image, network.device),
        unit.source.records.read(unit.where, columns),
        unit.source.proposals.read(unit.where),
        settings,
        seed=mixture.seed,
        epoch=epoch,
    )


def reassign(
    pool: NetworkPool,
    mixture: Mixture,
    *,
    weights: ray.ObjectRef | None,
    epoch: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Labels:
    """Labels of every box of the box-supervised sources with the given weights; the same for any number of actors."""
    chosen = mixture.with_supervision("box")
    parts = pool.map(
        assign_unit,
        chosen,
        weights=weights,
        version=f"epoch-{epoch}",
        on_progress=on_progress,
        mixture=mixture,
        epoch=epoch,
    )
    tables = dict(zip(chosen, parts, strict=True))
    return Labels.concatenate([tables.get(i, labels_table([])) for i in range(len(mixture.units))])
