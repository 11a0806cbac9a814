"""Builds any stored table with Ray Data: one task makes a shard and writes it, only small facts travel back.

Reads what `make_shard` reads; writes the table that `boxsup_dist.data.tables` describes. Guarantees: a killed build
keeps its finished shards and the next call makes the rest; the bytes don't depend on the number of CPUs; memory holds
one shard a task, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from boxsup_dist.data import tables
from boxsup_dist.data.tables import ShardInfo, Table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.shared import fetch
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter


@dataclass(frozen=True)
class ShardContent:
    """What a task makes of one shard: its rows (there may be none), counts to add up, records left out, times."""

    table: pa.Table
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)  # {image_id, problem}
    row_ms: list[int] = field(default_factory=list)  # computing time of each row: beside the table, never in it


def build_table(
    out: str,
    kind: str,
    settings: dict[str, Any],
    num_shards: int,
    make_shard: Callable[[int], ShardContent],
    *,
    row_group_size: int,
    description: str,
    cpus_per_task: float = 1,
    gpus_per_task: float = 0,
    num_cpus: int | None = None,
    check: Callable[[Sequence[ShardInfo]], None] | None = None,
) -> Table:
    """Make every unfinished shard of the table at `out`, then publish it; a whole table is returned as it is.

    `make_shard(index)` must be a pure function of the index and picklable. An InputError in it stops the build and is
    raised here. `check` sees all shards before the table is published and raises an InputError to refuse it: shards
    with problems are then made again by the next call, since the user may have mended the data. `num_cpus` is that of
    session.start, which is called only if there is work.
    """
    out = storage.absolute(out)
    settings = {**settings, "num_shards": num_shards, "row_group_size": row_group_size}
    whole = tables.begin(out, kind, settings)
    if whole is not None:
        if check is not None:
            check(whole.shards)
        return whole
    missing = _unfinished(out, num_shards)
    if missing:
        session.start(num_cpus)
        _make(out, kind, missing, num_shards, make_shard, row_group_size, description, cpus_per_task, gpus_per_task)
    shards = [_finished(out, index) for index in range(num_shards)]
    if check is not None:
        _check(out, shards, check)
    table = tables.publish(out, kind, settings, shards)
    for name in storage.list_names(out):
        if ".tmp-" in name:  # left by a call that was killed while writing
            storage.remove(storage.join(out, name))
    return table


def _unfinished(out: str, num_shards: int) -> list[int]:
    names = set(storage.list_names(out))
    shard_names = [tables.shard_name(index) for index in range(num_shards)]
    return [i for i, name in enumerate(shard_names) if not {f"{name}.json", f"{name}.parquet"} <= names]


def _finished(out: str, index: int) -> ShardInfo:
    info = tables.finished_shard(out, index)
    assert info is not None, f"shard {index} of {out} was made but its info is gone"
    return info


def _check(out: str, shards: Sequence[ShardInfo], check: Callable[[Sequence[ShardInfo]], None]) -> None:
    try:
        check(shards)
    except InputError:
        for index, shard in enumerate(shards):
            if shard.problems:
                storage.remove(storage.join(out, tables.shard_name(index) + ".json"))
        raise


def _make(
    out: str,
    kind: str,
    missing: list[int],
    num_shards: int,
    make_shard: Callable[[int], ShardContent],
    row_group_size: int,
    description: str,
    cpus_per_task: float,
    gpus_per_task: float,
) -> None:
    """Run a Ray Data pipeline over the missing shards, one task each."""
    shared = [ray.put((missing, make_shard))]

    def write_one(row: dict[str, Any]) -> dict[str, Any]:
        missing, make_shard = fetch(shared)
        index = missing[row["id"]]
        try:
            content = make_shard(index)
            tables.write_shard(
                out,
                index,
                content.table,
                kind,
                row_group_size=row_group_size,
                counts=content.counts,
                problems=content.problems,
                row_ms=content.row_ms,
            )
        except InputError as error:  # returned, not raised: the user gets the error itself, not Ray's trace of it
            return {"num_rows": 0, "error": _pickle(error)}
        return {"num_rows": content.table.num_rows, "error": b""}

    shards = ray.data.range(len(missing), override_num_blocks=len(missing))
    results = shards.map(write_one, num_cpus=cpus_per_task, num_gpus=gpus_per_task)
    with ProgressMeter(description, num_shards, done=num_shards - len(missing)) as progress:
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for result in batch.to_pylist():
                if result["error"]:
                    raise _unpickle(result["error"])
                progress.advance(result["num_rows"])


def _pickle(error: InputError) -> bytes:
    return ray.cloudpickle.dumps(error)


def _unpickle(data: bytes) -> InputError:
    return ray.cloudpickle.loads(data)
