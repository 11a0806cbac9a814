"""The actor pool of a run, untrained or with the weights of a checkpoint, and the resources of a pool alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import ray
from torch import Tensor

from boxsup_dist.config import Resources, ResourceSettings, TrainConfig
from boxsup_dist.data.tables import Table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import SettingError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.networks import NetworkSpec, build_network
from boxsup_dist.runs.checkpoints import find_checkpoint
from boxsup_dist.runs.kept_config import read_config


def make_pool(spec: NetworkSpec, resources: ResourceSettings, **options: Any) -> NetworkPool:
    """A pool of actors that hold this network, with random weights: each task brings the weights to use.

    Args:
        spec: The network.
        resources: Resolved for this session.
        options: Further options of NetworkPool.
    """
    assert isinstance(resources, Resources), "ResourceSettings.resolve comes first"
    return NetworkPool(
        partial(build_network, spec, "none"),
        num_actors=resources.num_actors,
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        threads=resources.threads_per_actor,
        **options,
    )


def pool_resources(num_actors: int | None, threads_per_actor: int = 1) -> Resources:
    """Resources of an actor pool that has the cluster of this session to itself.

    Args:
        num_actors: None: one per GPU, without GPUs one per CPU core.
        threads_per_actor: Torch threads of an actor; those of the run give its results to the last digit.

    Raises:
        SettingError: The cluster has no room for `num_actors` actors.
    """
    settings = ResourceSettings(num_actors=num_actors, gpus_per_worker=0.0, threads_per_actor=threads_per_actor)
    settings.check()
    nodes = session.nodes()
    resources = settings.resolve(nodes)
    resources.check_room(nodes, with_training=False)
    return resources


class Predictor(NamedTuple):
    """A pool, and the weights of the checkpoint that its actors use."""

    pool: NetworkPool
    weights: ray.ObjectRef[dict[str, Tensor]]
    version: str  # URI of the checkpoint


@contextmanager
def predictor(run_dir: str, checkpoint_uri: str | None, num_actors: int | None, records: Table) -> Iterator[Predictor]:
    """A pool with the trained network of a run; it ends with the block.

    Args:
        run_dir: Run directory.
        checkpoint_uri: As in `find_checkpoint`.
        num_actors: As in `pool_resources`.
        records: What to predict.

    Raises:
        InputError: There is no run or no whole checkpoint, or the records have another number of classes.
    """
    config, uri = load_run(run_dir, checkpoint_uri, num_actors)
    spec, weights = checkpoint.load_weights(uri)
    if len(records.classes) != spec.num_classes:
        raise SettingError(
            "the records have another number of classes than the network",
            file=records.uri,
            field="classes",
            value=len(records.classes),
            expected=f"{spec.num_classes}, as in {uri}",
        )
    pool = make_pool(spec, config.resources)
    try:
        yield Predictor(pool, ray.put(weights), uri)
    finally:
        pool.close()


def load_run(run_dir: str, checkpoint_uri: str | None, num_actors: int | None) -> tuple[TrainConfig, str]:
    """The configuration of a run, with the resources of a pool on this cluster, and the URI of a checkpoint.

    Arguments and errors are those of `predictor`.
    """
    config = read_config(run_dir)
    resources = pool_resources(num_actors, config.resources.threads_per_actor)
    return replace(config, resources=resources), find_checkpoint(run_dir, checkpoint_uri)
