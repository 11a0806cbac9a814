"""Tasks that run at once for train workers on many nodes: the stream beside bare Ray tasks, in turns, on one cluster.

The nodes are raylets on this machine with logical CPUs, and the tasks sleep: this shows what scheduling costs, and
neither disks nor networks.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

import boxsup_dist
from boxsup_dist.config import AugmentSettings
from boxsup_dist.data.sources import Mixture, Source, make_units
from boxsup_dist.data.tables import RowGroup, Table
from boxsup_dist.distributed.shared import Reference
from boxsup_dist.training.order import EpochOrder, order_epoch
from boxsup_dist.training.stream import worker_batches

SLEEP_S = 1.0
AT_ONCE = 2  # tasks of a worker, the default of resources.stream_tasks_per_worker
LANES_PER_WORKER, TASKS_PER_LANE = 4, 4
NODE_CPUS, NODE_STORE_BYTES = 4, 150 * 2**20


class SleepingTable(Table):
    """A records table that takes SLEEP_S to read."""

    def read(self, where: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one row group, slowly."""
        time.sleep(SLEEP_S)
        return super().read(where, columns)


@ray.remote(num_cpus=1)
def _sleep() -> None:
    time.sleep(SLEEP_S)


@ray.remote(num_cpus=0.25)
class _Worker:
    """Takes its share of an epoch as soon as it comes, like a train worker whose steps take no time."""

    def feed(self, way: str, shared: list[Reference], order: EpochOrder, rank: int, start: float) -> float:
        """Take all pieces from the time `start` on; returns how many tasks ran at once."""
        num_workers = len(order.lane_lengths) // LANES_PER_WORKER
        num_tasks = LANES_PER_WORKER * TASKS_PER_LANE
        time.sleep(max(0.0, start - time.time()))
        begun = time.perf_counter()
        if way == "stream":
            batches = worker_batches(
                shared, order, None, epoch=0, rank=rank, num_workers=num_workers, max_tasks=AT_ONCE
            )
            taken = sum(len(batch.image_ids) for batch in batches)
            assert taken == num_tasks, f"{taken} of {num_tasks} images"
        else:
            running: list[Reference] = []
            for _ in range(num_tasks):
                if len(running) == AT_ONCE:
                    _, running = ray.wait(running)
                running.append(_sleep.remote())
            ray.get(running)
        return num_tasks * SLEEP_S / (time.perf_counter() - begun)


def measure_nodes(mixture: Mixture, num_nodes: int, rounds: int) -> dict[str, Any]:
    """Tasks at once of one worker per node, by both ways in turns; the mean over the workers of each round.

    Args:
        mixture: The first record of its first source is read again and again, as if masks were filled boxes.
        num_nodes: Nodes to simulate.
        rounds: How often the ways take turns, after one round that is not counted.
    """
    table = SleepingTable(**vars(mixture.sources[0].records))
    unit = make_units([Source(table, "rectangles")])[0]._replace(rows=(0,))
    num_units = num_nodes * LANES_PER_WORKER * TASKS_PER_LANE
    small = AugmentSettings(32, 32, 0.1, 0.2)  # the tasks sleep; what else they do competes for this machine's cores
    sleeping = replace(mixture, units=(unit,) * num_units, augment=small)
    order = order_epoch([unit.rows] * num_units, seed=0, epoch=0, global_batch_size=num_nodes * LANES_PER_WORKER)
    # Raylets and their workers inherit both. Ray's workers would wait for everything else that runs on this machine.
    os.environ |= {"PYTHONPATH": str(Path(boxsup_dist.__file__).parents[1]), "RAY_worker_niceness": "0"}
    store: dict[str, Any] = {"object_store_memory": NODE_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    found: dict[str, list[float]] = {"stream": [], "bare tasks": []}
    try:
        for node in range(num_nodes):
            cluster.add_node(num_cpus=NODE_CPUS, resources={f"node{node}": 1}, **store)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        workers = [_Worker.options(resources={f"node{node}": 0.1}).remote() for node in range(num_nodes)]  # type: ignore[attr-defined]
        shared = [ray.put(sleeping)]
        for turn in range(rounds + 1):
            for way in found if turn % 2 == 0 else reversed(found):
                start = time.time() + 1
                rates = ray.get([w.feed.remote(way, shared, order, rank, start) for rank, w in enumerate(workers)])
                found[way].append(statistics.mean(rates))
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
    counted = {way: rates[1:] for way, rates in found.items()}  # the first round started the processes
    ratios = [ours / bare for ours, bare in zip(counted["stream"], counted["bare tasks"], strict=True)]
    return {"ratios": ratios, "tasks_at_once": counted, "wanted_at_once": AT_ONCE, "num_nodes": num_nodes}
