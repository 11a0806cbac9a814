"""Measure how much faster two actors reassign than one.

Both pools are warm and take turns on the same row groups.
"""

from __future__ import annotations

import time
from functools import partial

from boxsup_dist.distributed import session
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.io import storage
from boxsup_dist.model.networks import build_network
from boxsup_dist.runs.inputs import open_inputs
from jobs.bench.rows import finish, row
from jobs.bench.scale_run import (
    check_positive,
    choose_all,
    make_config,
    random_weights,
    store_proposals,
    store_records,
)
from jobs.bench.settings import Actors

IMAGES_A_UNIT = 16  # row group size of the tables
GOAL = 1.8  # two actors against one


def main(settings: Actors) -> None:
    """Measure images/s of a pool of one actor and of a pool of two, and their ratio in each round."""
    check_positive(settings, "units", "rounds")
    session.start()
    out, num_images = storage.absolute(settings.out), settings.units * IMAGES_A_UNIT
    folder = storage.join(out, f"actors-{num_images}-seed-{settings.seed}")
    records, proposals, labels = (storage.join(folder, name) for name in ("records", "proposals", "labels"))
    store_records(records, num_images, settings.seed)
    store_proposals(proposals, records, settings.seed)
    inputs = open_inputs(make_config(folder, records, proposals))
    mixture = inputs.mixture
    weights, build = random_weights(inputs.network), partial(build_network, inputs.network, "none")
    pools = {count: NetworkPool(build, num_actors=count, num_cpus=0.25, threads=1) for count in (1, 2)}
    found: dict[int, list[float]] = {count: [] for count in pools}
    for pool in pools.values():
        pool.wait_ready()
        choose_all(pool, mixture, weights, labels, in_tasks=False)
    for turn in range(settings.rounds):
        for count in (1, 2) if turn % 2 == 0 else (2, 1):
            started = time.perf_counter()
            choose_all(pools[count], mixture, weights, labels, in_tasks=False)
            found[count].append(num_images / (time.perf_counter() - started))
    for pool in pools.values():
        pool.close()
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    rows = [row("2 actors reassign", "times the images/s of one", ratios, GOAL)]
    finish(settings, "actors", rows, {"images": num_images, "images_per_s": found})
