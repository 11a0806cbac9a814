"""The network of a run: untrained for the pool's members, or trained, with the checkpoint to use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import ray

from boxsup_dist.config import NetworkSettings, TrainConfig
from boxsup_dist.data.tables import Table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import SettingError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.networks import SegmentationNetwork, build_network
from boxsup_dist.runs.kept_config import read_config


def bare_network(settings: NetworkSettings) -> SegmentationNetwork:
    """The network without first weights: they come from training."""
    return build_network(
        settings.name,
        settings.num_classes,
        output_stride=settings.output_stride,
        head=settings.head,
        dropout=settings.dropout,
        weights="none",
    )


def make_pool(config: TrainConfig, **options: Any) -> NetworkPool:
    """The actor pool that the configuration describes; `options` are others of NetworkPool."""
    resources = config.resources
    return NetworkPool(
        partial(bare_network, config.network),
        num_actors=resources.num_actors,
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        threads=resources.threads_per_actor,
        **options,
    )


class Predictor(NamedTuple):
    """A pool and the weights of the checkpoint that its members shall use."""

    pool: NetworkPool
    weights: ray.ObjectRef
    version: str  # URI of the checkpoint


@contextmanager
def predictor(run_dir: str, checkpoint_uri: str | None, num_actors: int, records: Table) -> Iterator[Predictor]:
    """The pool of a run's network, for records of its classes; ends with the block. InputError if they don't fit."""
    config, uri = load_run(run_dir, checkpoint_uri, num_actors)
    if len(records.classes) != config.network.num_classes:
        raise SettingError(
            "the records are labelled with other classes than the network's",
            file=records.uri,
            field="classes",
            value=len(records.classes),
            expected=str(config.network.num_classes),
        )
    weights = ray.put(dict(checkpoint.load(uri).model))
    pool = make_pool(config)
    try:
        yield Predictor(pool, weights, uri)
    finally:
        pool.close()


def load_run(run_dir: str, checkpoint_uri: str | None, num_actors: int) -> tuple[TrainConfig, str]:
    """A run's configuration, fitted to the running session, and the checkpoint to use. Raises InputError."""
    config = read_config(run_dir)
    resources = replace(config.resources, num_actors=num_actors, gpus_per_actor=0.0)
    size = session.total_cpus(), session.total_gpus()
    resources = resources.resolve(*size)
    resources.check_room(*size, with_training=False)
    return replace(config, resources=resources), checkpoint.newest(checkpoint_uri or run_dir)
