"""Make the records and proposals that the drills train on, on the cluster at RAY_ADDRESS.

python -m jobs.drill.data OUT
"""

from __future__ import annotations

import sys

import ray

from boxsup_dist.distributed import session
from boxsup_dist.io import storage
from jobs.bench.scale_run import store_proposals, store_records

NUM_IMAGES = 64
ROWS_PER_SHARD = 4  # small, so that every stage has many pieces


def make_data(out: str) -> None:
    """Make OUT/records and OUT/proposals."""
    records = storage.join(out, "records")
    session.start()
    try:
        store_records(records, NUM_IMAGES, seed=0, rows_per_shard=ROWS_PER_SHARD, row_group_size=ROWS_PER_SHARD // 2)
        store_proposals(storage.join(out, "proposals"), records, seed=0)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    make_data(sys.argv[1])
