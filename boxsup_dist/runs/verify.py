"""Whether stored tables and run directories still are what was written: every byte is read and compared.

A table's manifest has the hash of each shard; labels files hold a hash of themselves; a checkpoint's manifest has the
hash of each of its files. Partner tables are compared with their records by image id, labels with the boxes of theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from boxsup_dist.data import parquet
from boxsup_dist.data.labels import read_labels
from boxsup_dist.data.schema import LABELS, check_schema
from boxsup_dist.data.sources import Source, Unit, make_units
from boxsup_dist.data.tables import Table, check_paired, open_table
from boxsup_dist.errors import InputError, StorageError, TableError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import fingerprint
from boxsup_dist.runs.history import read_history
from boxsup_dist.runs.kept_config import read_config
from boxsup_dist.runs.layout import RunFiles
from boxsup_dist.runs.summary import is_finished, read_summary

NUM_THREADS = 8  # each holds one file; reading, hashing and decoding leave the interpreter to the others
_OF_A_BOX = ("image_id", "box_index", "class_id")  # columns of a labels table that its records decide


class Check(NamedTuple):
    """One thing to check: `run` raises the InputError that describes what is wrong with it."""

    run: Callable[[], object]
    num_rows: int = 0


def find_problems(checks: Sequence[Check]) -> Iterator[InputError | None]:
    """Yield what each check finds, None for what is whole, in their order.

    Raises:
        StorageError: The store does not answer: that says nothing about its content.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from pool.map(_problem, checks)


def _problem(check: Check) -> InputError | None:
    try:
        check.run()
    except StorageError:
        raise
    except InputError as error:
        return error
    return None


def fails_with(error: InputError) -> Check:
    """The check of something that could not even be opened."""

    def run() -> None:
        raise error

    return Check(run)


def table_checks(tables: Sequence[Table]) -> list[Check]:
    """Checks of each shard, and of each partner table whose records are among the tables."""
    records = {table.fingerprint: table for table in tables if table.kind == "records"}
    checks = []
    for table in tables:
        checks += [Check(partial(check_shard, table, i), shard.num_rows) for i, shard in enumerate(table.shards)]
        if table.settings.get("records") in records:
            checks.append(Check(partial(check_paired, records[table.settings["records"]], table)))
    return checks


def without_records(tables: Sequence[Table]) -> list[Table]:
    """The partner tables whose records are not among the tables."""
    records = {table.fingerprint for table in tables if table.kind == "records"}
    return [table for table in tables if table.kind != "records" and table.settings.get("records") not in records]


def check_shard(table: Table, index: int) -> None:
    """Read a whole shard; compare its bytes with the manifest, and the manifest with its rows.

    Raises:
        TableError: The shard is damaged, or its manifest says something else; names the shard and the field.
    """
    uri, info = table.shard_uri(index), table.shards[index]
    with parquet.needing_shard(uri):
        data = storage.read_bytes(uri)
    _compare(uri, {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, info)
    with parquet.decoding_parquet(uri):
        rows = pq.read_table(pa.BufferReader(data))
        sizes = parquet.row_groups(pq.read_metadata(pa.BufferReader(data)))
        proof = asdict(parquet.prove(data))
    check_schema(rows.schema, table.kind, file=uri)
    _compare(uri, {**proof, "row_groups": sizes, "ids": fingerprint(rows.column("image_id").to_pylist())}, info)


def _compare(uri: str, found: dict[str, object], info: object) -> None:
    for field, value in found.items():
        if value != getattr(info, field):
            raise parquet.damaged(uri, field, value, getattr(info, field))


def run_checks(run_dir: str) -> tuple[list[Check], list[Table]]:
    """Checks of a run's own files, and the tables that it reads."""
    from boxsup_dist.model import checkpoint  # here, because it imports torch

    files = RunFiles(run_dir)
    checks = [Check(partial(checkpoint.check, uri)) for uri in checkpoint.list_checkpoints(run_dir)]
    checks.append(Check(partial(read_history, run_dir, strict=True)))
    if is_finished(run_dir):
        checks.append(Check(partial(read_summary, run_dir)))
    sources, tables = [], []
    try:
        config = read_config(run_dir)
        for settings in config.sources:
            records = open_table(settings.records, "records")
            proposals = open_table(settings.proposals, "proposals") if settings.proposals else None
            label_maps = open_table(settings.label_maps, "label_maps") if settings.label_maps else None
            sources.append(Source(records, settings.supervision, proposals, label_maps))
            tables += [table for table in (records, proposals, label_maps) if table is not None]
        if config.val_records:
            tables.append(open_table(config.val_records, "records"))
    except StorageError:
        raise
    except InputError as error:
        checks.append(fails_with(error))
        sources = []
    epochs = files.epochs_with_labels()
    expected = boxes_to_label(sources) if sources and epochs else None
    return [*checks, *(Check(partial(check_labels, files.labels(epoch), expected)) for epoch in epochs)], tables


class Boxes(NamedTuple):
    """What every labels table of a run has in common: which boxes it labels."""

    table: pa.Table  # the columns _OF_A_BOX, a row per box
    offsets: NDArray[np.int64]  # (units + 1,), as those of Labels


def boxes_to_label(sources: Sequence[Source]) -> Boxes | None:
    """All boxes that a run assigns; None if the records are damaged, which their own checks report."""
    try:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            parts = list(pool.map(_boxes_of, make_units(sources)))
    except StorageError:
        raise
    except InputError:
        return None
    return Boxes(pa.concat_tables(parts), np.cumsum([0, *(part.num_rows for part in parts)]))


def _boxes_of(unit: Unit) -> pa.Table:
    """Rows of Boxes.table for one unit; reads two small columns of the records."""
    rows: list[dict[str, object]] = []
    if unit.source.supervision == "box":
        for record in unit.source.records.read(unit.where, ("image_id", "class_ids")).to_pylist():
            boxes = enumerate(record["class_ids"])
            rows += [{"image_id": record["image_id"], "box_index": k, "class_id": class_id} for k, class_id in boxes]
    return pa.Table.from_pylist(rows, schema=pa.schema([LABELS.field(name) for name in _OF_A_BOX]))


def check_labels(uri: str, expected: Boxes | None) -> None:
    """Read a labels file, and compare its boxes with those of the records.

    Args:
        uri: The file.
        expected: None, where the records cannot be read: only the file itself is checked.

    Raises:
        TableError: The file is damaged, or labels other boxes.
    """
    labels = read_labels(uri)
    if expected is None:
        return
    problem = "the labels are not those of the run's records"
    if not np.array_equal(labels.offsets, expected.offsets):
        sizes = [f"{len(offsets) - 1} units, {offsets[-1]} boxes" for offsets in (labels.offsets, expected.offsets)]
        raise TableError(problem, file=uri, field="unit_offsets", value=sizes[0], expected=sizes[1])
    for name in _OF_A_BOX:
        found, wanted = labels.table.column(name), expected.table.column(name)
        if not found.equals(wanted):
            row = next(i for i in range(len(found)) if found[i] != wanted[i])
            where, value = f"{name}, row {row}", found[row].as_py()
            raise TableError(problem, file=uri, field=where, value=value, expected=str(wanted[row]))
