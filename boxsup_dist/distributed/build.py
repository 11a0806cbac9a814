"""Builds a stored table with Ray Data: each task makes one shard and writes it; only its number of rows comes back.

Reads what `make_shard` reads; writes the table that `boxsup_dist.data.tables` describes. Guarantees: a killed build
keeps its finished shards and the next call makes the rest; the bytes do not depend on the number of CPUs; memory holds
one shard per task, for any number of images; an image that ends its process ends neither the build nor its shard
(`boxsup_dist.distributed.crashes`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.util.annotations import RayDeprecationWarning

from boxsup_dist.data import tables
from boxsup_dist.data.tables import RowGroup, ShardInfo, Table
from boxsup_dist.distributed import session
from boxsup_dist.distributed.crashes import ImageIds, remake
from boxsup_dist.distributed.faults import LOST
from boxsup_dist.distributed.shared import Reference, fetch
from boxsup_dist.errors import InputError, RecordError, cause_to_show
from boxsup_dist.io import storage
from boxsup_dist.progress import ProgressMeter

MAX_LOST_SHARDS = 16  # with more of them, Ray Data stops and the search for the images begins


@dataclass(frozen=True)
class ShardContent:
    """What a task makes of one shard."""

    table: pa.Table  # the rows; there may be none
    counts: dict[str, int] = field(default_factory=dict)  # added up over the shards
    problems: list[dict[str, str]] = field(default_factory=list)  # {image_id, problem} of unusable records
    row_ms: list[int] = field(default_factory=list)  # computing time of each row: beside the table, never in it


MakeShard = Callable[[int, Mapping[str, str]], ShardContent]
"""Makes shard `index`. The mapping has images that must not be tried, and what their problem is: id -> problem."""


@dataclass(frozen=True)
class ShardJob:
    """All that a task must know to make any shard of a table."""

    out: str
    kind: str
    row_group_size: int
    make_shard: MakeShard

    def write(self, index: int, crashed: Mapping[str, str]) -> int:
        """Make and write a shard without trying the images `crashed`; return its number of rows."""
        content = self.make_shard(index, crashed)
        tables.write_shard(
            self.out,
            index,
            content.table,
            self.kind,
            row_group_size=self.row_group_size,
            counts=content.counts,
            problems=content.problems,
            row_ms=content.row_ms,
        )
        return int(content.table.num_rows)


class _Written(NamedTuple):
    """What a task reports of its shard: a row of Ray Data."""

    num_rows: int
    error: bytes  # a pickled InputError; empty without one


def build_table(
    out: str,
    kind: str,
    settings: dict[str, Any],
    num_shards: int,
    make_shard: MakeShard,
    *,
    image_ids: ImageIds,
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
        make_shard: The content of shard `index`, 0 to num_shards - 1. A pure, picklable function.
        image_ids: The ids of the images that shard `index` is made of, in order; called here, not in the tasks.
        row_group_size: Rows of one row group.
        description: Name of the build beside its progress.
        gpus_per_task: GPUs that a task reserves besides its one CPU.
        num_cpus: CPUs of a local Ray session, as in `session.start`, which is called only if there is work.
        check: Sees all shards before the table is published, and raises an InputError to refuse the table. The next
            call then makes the shards with problems again, because the user may have corrected the data.

    Raises:
        InputError: From `make_shard` or `check`, as it is.
        LostWorkError: Most images end their process, or a shard does and none of its images.
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
        shared = [ray.put(ShardJob(out, kind, row_group_size, make_shard))]
        with ProgressMeter(description, num_shards, done=num_shards - len(missing)) as progress:
            for num_rows in _make(shared, missing, gpus_per_task):
                progress.advance(num_rows)
            left = _unfinished(out, num_shards)  # lost their process or node
            for num_rows in remake(shared, left, image_ids, description=description, num_gpus=gpus_per_task):
                progress.advance(num_rows)
    shards = [_finished(out, index) for index in range(num_shards)]
    if check is not None:
        _check(out, shards, check)
    table = tables.publish(out, kind, settings, shards)
    for name in storage.list_names(out):
        if ".tmp-" in name:  # left by a call that was killed while it wrote
            storage.remove(storage.join(out, name))
    return table


def build_partner(
    out: str,
    kind: str,
    settings: dict[str, Any],
    records: Table,
    make: Callable[[Sequence[RowGroup], Mapping[str, str]], ShardContent],
    *,
    max_failed_share: float,
    **options: Any,
) -> Table:
    """Build a table that has a row for each record, in the shards and row groups of the records.

    Args:
        out: As in `build_table`.
        kind: As in `build_table`.
        settings: As in `build_table`, besides the fingerprint of the records.
        records: The records.
        make: The content of a shard, from its row groups of the records and the images that must not be tried, which
            have rows all the same.
        max_failed_share: The table is refused if a larger share of its images has problems.
        options: Further options of `build_table`.

    Raises:
        RecordError: Too many images have problems; lists the first ones.
        InputError: As in `build_table`.
    """

    def groups(index: int) -> list[RowGroup]:
        return [RowGroup(index, group, rows) for group, rows in enumerate(records.shards[index].row_groups)]

    def image_ids(index: int) -> list[str]:
        columns = [records.read(where, ["image_id"]).column("image_id") for where in groups(index)]
        return [image_id for column in columns for image_id in column.to_pylist()]

    return build_table(
        out,
        kind,
        {"records": records.fingerprint, **settings},
        len(records.shards),
        lambda index, crashed: make(groups(index), crashed),
        image_ids=image_ids,
        row_group_size=records.settings["row_group_size"],
        check=lambda shards: check_failed(shards, max_failed_share),
        **options,
    )


def check_failed(shards: Sequence[ShardInfo], max_share: float) -> None:
    """Raise RecordError with the first images and reasons if more than the share `max_share` of the images failed."""
    problems = [problem for shard in shards for problem in shard.problems]
    total = sum(shard.num_rows for shard in shards)
    if len(problems) > max_share * total:
        shown = "\n".join(f"  {p['image_id']}: {p['problem']}" for p in problems[:10])
        raise RecordError(f"{len(problems)} of {total} images failed, {max_share:.1%} are allowed:\n{shown}")


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


def _make(shared: list[Reference], missing: list[int], gpus_per_task: float) -> Iterator[int]:
    """Make the missing shards with Ray Data, one task each; yield the number of rows of each that is made.

    A shard whose process or node is lost is left out, and from MAX_LOST_SHARDS on all that are not made yet. Ray Data's
    own retries are off, because they have no end.
    """

    def write_one(row: dict[str, int]) -> dict[str, Any]:
        try:
            return _Written(fetch(shared).write(row["index"], {}), b"")._asdict()
        except (InputError, OSError) as error:  # returned, not raised: the user gets the error, not Ray's traceback
            return _Written(0, _pickle(cause_to_show(error) or error))._asdict()

    shards = ray.data.from_items([{"index": index} for index in missing], override_num_blocks=len(missing))
    shards.context.max_errored_blocks = MAX_LOST_SHARDS
    with warnings.catch_warnings():
        # Ray 2.60 wants every option as a parameter of its own, but has none for max_retries.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        results = shards.map(write_one, num_cpus=1, num_gpus=gpus_per_task, max_retries=0)
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for written in (_Written(**row) for row in batch.to_pylist()):
                if written.error:
                    raise ray.cloudpickle.loads(written.error)
                yield written.num_rows
    except LOST:
        return


def _pickle(error: Exception) -> bytes:
    return bytes(ray.cloudpickle.dumps(error))  # type: ignore[no-untyped-call]
