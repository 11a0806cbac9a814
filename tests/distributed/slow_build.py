"""A build to be killed: python -m tests.distributed.slow_build OUT SECONDS_PER_SHARD, on one CPU."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from boxsup_dist.data.schema import Record, records_to_table
from boxsup_dist.data.tables import Table
from boxsup_dist.distributed.build import MakeShard, ShardContent, build_table

NUM_SHARDS = 12
ROWS = 5


def image_ids(index: int) -> list[str]:
    """Shard 3 has none."""
    return [f"test/{index}-{row}" for row in range(ROWS if index != 3 else 0)]


def make_content(index: int, crashed: Mapping[str, str]) -> ShardContent:
    """Rows that depend on the index alone."""
    records = []
    problems = [{"image_id": "test/x", "problem": "broken"}] if index == 3 else []
    for row, image_id in enumerate(image_ids(index)):
        if image_id in crashed:
            problems.append({"image_id": image_id, "problem": crashed[image_id]})
            continue
        rng = np.random.default_rng([index, row])
        records.append(
            Record(
                image_id=image_id,
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
    return ShardContent(records_to_table(records), {"images": len(records), "skipped": len(problems)}, problems)


def build(out: str, seconds: float = 0.0, num_cpus: int | None = None) -> Table:
    """Build the table, slowly."""

    def make_shard(index: int, crashed: Mapping[str, str]) -> ShardContent:
        time.sleep(seconds)
        return make_content(index, crashed)

    return build_some(out, NUM_SHARDS, make_shard, settings={"x": 1}, description="slow", num_cpus=num_cpus)


def build_some(out: object, num_shards: int, make_shard: MakeShard, **options: Any) -> Table:
    """Build a records table of this many shards."""
    options = {"settings": {}, "row_group_size": 2, "description": "some", "image_ids": image_ids} | options
    return build_table(str(out), "records", num_shards=num_shards, make_shard=make_shard, **options)


if __name__ == "__main__":
    build(sys.argv[1], float(sys.argv[2]), num_cpus=1)
