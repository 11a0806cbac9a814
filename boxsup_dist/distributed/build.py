"""Builds a stored table with Ray Data: each task makes one shard and writes it; only its number of rows comes back.

Reads what `make_shard` reads; writes the table that `boxsup_dist.data.tables` describes. Guarantees: a killed build
keeps its finished shards and the next call makes the rest; the bytes do not depend on the number of CPUs; memory holds
one shard per task, for any number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
    """What a task makes of one shard."""

    table: pa.Table  # the rows; there may be none
    counts: dict[str, int] = field(default_factory=dict)  # added up over the shards
    problems: list[dict[str, str]] = field(default_factory=list)  # {image_id, problem} of unusable records
    row_ms: list[int] = field(default_factory=list)  # computing time of each row: beside the table, never in it


class _Written(NamedTuple):
    """What a task reports of its shard: a row of Ray Data."""

    num_rows: int
    error: bytes  # a pickled InputError; empty without one


def build_table(
    out: str,
    kind: str,
    settings: dict[str, Any],
    num_shards: int,
    make_shard: Callable[[int], ShardContent],
    *,
    row_group_size: int,
    description: str,
    gpus_per_task: float = 0,
    num_cpus: int | None = None,
    check: Callable[[Sequence[ShardInfo]], None] | None = None,
) -> Table:
    """Make every unfinished shard of the table at `out`, then publish the table; a whole table is returned unchanged.

    Args:
        out: Folder or URI of the table.
        kind: Kind of table: "records", "proposals" or "label_maps".
        settings: JSON values that decide the rows; a table with others is refused.
        num_shards: Shards of the whole table.
        make_shard: The content of shard `index`, 0 to num_shards - 1. A pure, picklable function of the index.
        row_group_size: Rows of one row group.
        description: Name of the build beside its progress.
        gpus_per_task: GPUs that a task reserves besides its one CPU.
        num_cpus: CPUs of a local Ray session, as in `session.start`, which is called only if there is work.
        check: Sees all shards before the table is published, and raises an InputError to refuse the table. The next
            call then makes the shards with problems again, because the user may have corrected the data.

    Raises:
        InputError: From `make_shard` or `check`, as it is.
        TableError: `out` holds a table of another kind or with other settings.
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
        session.check_task_room(gpus_per_task)
        _make(out, kind, missing, num_shards, make_shard, row_group_size, description, gpus_per_task)
    shards = [_finished(out, index) for index in range(num_shards)]
    if check is not None:
        _check(out, shards, check)
    table = tables.publish(out, kind, settings, shards)
    for name in storage.list_names(out):
        if ".tmp-" in name:  # left by a call that was killed while it wrote
            storage.remove(storage.join(out, name))
    return table


def _unfinished(out: str, num_shards: int) -> list[int]:
    names = set(storage.list_names(out))
    shard_names = [tables.shard_name(index) for index in range(num_shards)]
    return [i for i, name in enumerate(shard_names) if not {f"{name}.json", f"{name}.parquet"} <= names]


def _finished(out: str, index: int) -> ShardInfo:
    info = tables.finished_shard(out, index)
    assert info is not None, f"shard {index} of {out} was made but its info is missing"
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
    gpus_per_task: float,
) -> None:
    """Make the missing shards with Ray Data, one task each."""
    shared = [ray.put((missing, make_shard))]

    def write_one(row: dict[str, int]) -> dict[str, Any]:
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
        except InputError as error:  # returned, not raised: the user gets the error itself, not Ray's traceback
            return _Written(0, _pickle(error))._asdict()
        return _Written(content.table.num_rows, b"")._asdict()

    shards = ray.data.range(len(missing), override_num_blocks=len(missing))
    results = shards.map(write_one, num_cpus=1, num_gpus=gpus_per_task)
    with ProgressMeter(description, num_shards, done=num_shards - len(missing)) as progress:
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for written in (_Written(**row) for row in batch.to_pylist()):
                if written.error:
                    raise ray.cloudpickle.loads(written.error)
                progress.advance(written.num_rows)


def _pickle(error: InputError) -> bytes:
    return bytes(ray.cloudpickle.dumps(error))  # type: ignore[no-untyped-call]
