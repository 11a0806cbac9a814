"""Reassigns all boxes of a mixture on the actor pool; one unit of work is one row group of a source's tables."""

from __future__ import annotations

import pyarrow as pa

from boxsup_dist.assignment.assign import RECORD_COLUMNS, assign_row_group, refines
from boxsup_dist.data import labels
from boxsup_dist.data.labels import LabelsShard, LabelsTable
from boxsup_dist.data.sources import Mixture
from boxsup_dist.distributed.crashes import name_rows
from boxsup_dist.distributed.ordered import Progress
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.distributed.shared import Reference
from boxsup_dist.model.inference import predict_log_probs
from boxsup_dist.model.networks import SegmentationNetwork


def assign_unit(network: SegmentationNetwork, index: int, *, mixture: Mixture, epoch: int) -> pa.Table:
    """Labels of the images of one unit that the run trains on, as rows of the labels table.

    During the warm-up the network is not used, and the images are read only if the epoch refines.
    """
    unit, settings = mixture.units[index], mixture.assignment
    assert unit.source.proposals is not None
    warm_up, refine = epoch < settings.warmup_epochs, refines(settings, epoch)
    columns = [name for name in RECORD_COLUMNS if name != "image" or refine or not warm_up]
    label_maps = unit.source.label_maps if refine else None
    return assign_row_group(
        None if warm_up else lambda image: predict_log_probs(network, image, network.device),
        unit.trained(unit.source.records.read(unit.where, columns)),
        unit.trained(unit.source.proposals.read(unit.where)),
        settings,
        seed=mixture.seed,
        epoch=epoch,
        label_maps=None if label_maps is None else unit.trained(label_maps.read(unit.where)),
    )


def store_unit(
    network: SegmentationNetwork, index: int, *, mixture: Mixture, epoch: int, uri: str, previous: LabelsTable | None
) -> LabelsShard | None:
    """Assign one unit and write its labels where they were made; returns what `publish` needs of them."""
    return labels.write_shard(uri, {index: assign_unit(network, index, mixture=mixture, epoch=epoch)}, previous)


def reassign(
    pool: NetworkPool,
    mixture: Mixture,
    *,
    weights: Reference | None,
    epoch: int,
    uri: str,
    previous: LabelsTable | None = None,
    on_progress: Progress | None = None,
) -> list[LabelsShard | None]:
    """Write the labels of every box that the run trains on from boxes; the same rows for any number of actors.

    No labels come to this process: the members write them.

    Args:
        pool: Actors that predict and assign.
        mixture: The sources and the settings of the assignment.
        weights: Reference to the network's state dict; None keeps the network of the pool as it is.
        epoch: Epoch of the labels, from 0; decides warm-up, refinement and the random draws.
        uri: Folder of the labels table. An earlier table there is withdrawn.
        previous: The labels of the epoch before, to count the boxes whose candidate changed.
        on_progress: Called after each unit.

    Returns:
        The shards: `data.labels.publish` makes them a table.
    """
    labels.begin(uri)
    units = mixture.with_supervision("box")
    shards = pool.map(
        store_unit,
        units,
        weights=weights,
        version=f"epoch-{epoch}",
        on_progress=on_progress,
        on_lost=name_rows(mixture.place),
        mixture=mixture,
        epoch=epoch,
        uri=uri,
        previous=previous,
    )
    return list(shards)
