"""A build to be killed: python -m tests.distributed.slow_build OUT SECONDS_PER_SHARD, on one CPU."""

import sys
import time

import numpy as np

from boxsup_dist.data.schema import Record, records_to_table
from boxsup_dist.data.tables import Table
from boxsup_dist.distributed.build import ShardContent, build_table

NUM_SHARDS = 12
ROWS = 5


def make_content(index: int) -> ShardContent:
    """Rows that depend on the index alone; shard 3 has none."""
    records = []
    for row in range(ROWS if index != 3 else 0):
        rng = np.random.default_rng([index, row])
        records.append(
            Record(
                image_id=f"test/{index}-{row}",
                source="test",
                split="train",
                image=rng.bytes(2000),
                height=10,
                width=10,
                boxes_xyxy=rng.uniform(0, 10, (2, 4)),
                class_ids=np.array([1, 2]),
                difficult=np.zeros(2, bool),
                crowd=np.zeros(2, bool),
            )
        )
    problems = [{"image_id": "test/x", "problem": "broken"}] if index == 3 else []
    return ShardContent(records_to_table(records), {"images": len(records), "skipped": len(problems)}, problems)


def build(out: str, seconds: float = 0.0, num_cpus: int | None = None) -> Table:
    """Build the table, slowly."""

    def make_shard(index: int) -> ShardContent:
        time.sleep(seconds)
        return make_content(index)

    return build_table(
        out, "records", {"x": 1}, NUM_SHARDS, make_shard, row_group_size=2, description="slow", num_cpus=num_cpus
    )


if __name__ == "__main__":
    build(sys.argv[1], float(sys.argv[2]), num_cpus=1)
