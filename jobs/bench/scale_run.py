"""Tables of the synthetic set and a run with a tiny network, for the measurements scale and actors and for drills."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from boxsup_dist.assignment.reassign import reassign
from boxsup_dist.config import AugmentSettings, NetworkSettings, OptimizerSettings, SourceSettings, TrainConfig
from boxsup_dist.data.labels import LabelsShard
from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.sources import Mixture
from boxsup_dist.data.tables import Table, open_table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.build import build_partner
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import SettingError
from boxsup_dist.io import storage
from boxsup_dist.model.networks import NetworkSpec, build_network
from boxsup_dist.progress import ProgressMeter
from boxsup_dist.proposals.build import propose_shard
from boxsup_dist.proposals.methods import Method
from boxsup_dist.records.build import build_records
from boxsup_dist.records.reader import Reader
from boxsup_dist.runs.recipes import mini
from jobs.bench.scale_set import SOURCE, entries, scene_proposals, scene_record

CROP_PX = 65
GLOBAL_BATCH_SIZE = 20


def check_positive(settings: Any, *names: str) -> None:
    """Raise SettingError unless these settings are above 0."""
    for name in names:
        if getattr(settings, name) <= 0:
            raise SettingError("a setting is out of range", field=name, value=getattr(settings, name), expected="> 0")


def store_records(out: str, num_images: int, seed: int, **options: Any) -> dict[str, Any]:
    """Store the records table; `options` are passed on to build_records."""
    reader = Reader(SOURCE, "train", {"seed": seed}, entries(num_images), partial(scene_record, seed=seed))
    table = build_records(out, reader, **options)
    return _describe(table) | {"boxes": table.counts["boxes"]}


def store_proposals(out: str, records_uri: str, seed: int) -> dict[str, Any]:
    """Store the proposals table as proposals.build does, by a method that draws them at random."""
    records = open_table(records_uri, "records")
    method = Method(partial(_propose, seed=seed), int)
    table = build_partner(
        out,
        "proposals",
        {"method": SOURCE, "seed": seed},
        records,
        lambda groups, crashed: propose_shard(records, groups, method, 0, crashed),
        max_failed_share=0.0,
        description="proposals",
    )
    return _describe(table) | {"candidates": table.counts["candidates"], "failed": table.counts["failed"]}


def _propose(image: NDArray[np.uint8], settings: Any, *, image_id: str, seed: int) -> Proposals:
    return scene_proposals(seed, image_id)


def _describe(table: Table) -> dict[str, Any]:
    return {
        "bytes": table.num_bytes,
        "shards": len(table.shards),
        "manifest MB": storage.size(storage.join(table.uri, "manifest.json")) / 1e6,
        "kB per image": table.num_bytes / table.num_rows / 1000,
    }


def make_config(folder: str, records: str, proposals: str) -> TrainConfig:
    """The recipe `mini` with a tiny network, small crops and the paper's batch size, on two workers and two actors."""
    config = mini(storage.join(folder, "run"), (SourceSettings(records, "box", proposals),), None)
    resources = replace(config.resources, num_workers=2, num_actors=2)
    return replace(
        config,
        network=NetworkSettings("timm:test_resnet", weights="none", output_stride=16, dropout=0.0),
        optimizer=OptimizerSettings(global_batch_size=GLOBAL_BATCH_SIZE, class_balance=0.5),
        augment=AugmentSettings(CROP_PX, CROP_PX, 0.75, 1.25),
        resources=resources.resolve(session.nodes()),
        measure_labels=False,
    ).check()


def random_weights(spec: NetworkSpec) -> ray.ObjectRef[Any]:
    """Random weights of this network, in the object store."""
    torch.manual_seed(0)
    weights = build_network(spec, "none").state_dict()
    torch.nn.init.normal_(weights["score.weight"])  # it starts at zero, and all classes would be alike
    return ray.put(weights)


def choose_all(
    pool: NetworkPool, mixture: Mixture, weights: ray.ObjectRef[Any], uri: str, *, in_tasks: bool
) -> list[LabelsShard | None]:
    """Reassign the labels of every box with these weights; writes the shards of the labels table `uri`.

    `in_tasks`: choose in tasks beside the members, as where these are on GPUs.
    """
    sizes = [len(unit.rows) for unit in mixture.units]
    with ProgressMeter("reassign", len(sizes)) as meter:
        return reassign(
            pool,
            mixture,
            weights=weights,
            epoch=mixture.assignment.warmup_epochs,  # the first epoch that asks the network
            uri=uri,
            choose_in_tasks=in_tasks,
            on_progress=meter.advance_to(sizes),
        )
