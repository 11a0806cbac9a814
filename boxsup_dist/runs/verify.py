"""Whether stored tables and run directories still are what was written: every byte is read and compared.

The manifests of tables, labels and checkpoints have the hash of each file. Partner tables are compared with their
records by image id, labels with the boxes of their records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from boxsup_dist.data import parquet
from boxsup_dist.data.labels import LabelsTable, check_named, open_labels
from boxsup_dist.data.parquet import Proof
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
_OTHER_BOXES = "the labels are not those of the run's records"


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
    rows, sizes = _read_shard(uri, info, table.kind)
    ids = fingerprint(rows.column("image_id").to_pylist())
    _compare(uri, info, {"row_groups": (sizes, info.row_groups), "ids": (ids, info.ids)})


def _read_shard(uri: str, proof: Proof, kind: str) -> tuple[pa.Table, list[int]]:
    """Read a whole shard that fits its proof: its rows, and their number in each row group."""
    with parquet.needing_shard(uri, proof):
        data = storage.read_bytes(uri)
    found = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _compare(uri, proof, {name: (value, getattr(proof, name)) for name, value in found.items()})
    with parquet.decoding_parquet(uri):
        rows = pq.read_table(pa.BufferReader(data))
        sizes = parquet.row_groups(pq.read_metadata(pa.BufferReader(data)))
        again = asdict(parquet.prove(data))
    check_schema(rows.schema, kind, file=uri)
    _compare(uri, proof, {name: (value, getattr(proof, name)) for name, value in again.items()})
    return rows, sizes


def _compare(uri: str, proof: Proof, found: dict[str, tuple[object, object]]) -> None:
    for field, (value, expected) in found.items():
        if value != expected:
            raise parquet.damaged(uri, proof, field, value, expected)


def run_checks(run_dir: str) -> tuple[list[Check], list[Table]]:
    """Checks of a run's own files, and the tables that it reads."""
    from boxsup_dist.model import checkpoint  # here, because it imports torch

    files = RunFiles(run_dir)
    checks = [Check(partial(_check_checkpoint, run_dir, uri)) for uri in checkpoint.list_checkpoints(run_dir)]
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
    for epoch in epochs:
        checks += labels_checks(files.labels(epoch), expected)
    return checks, tables


def _check_checkpoint(run_dir: str, uri: str) -> None:
    """Check the files of a checkpoint, and that the labels that it names are there."""
    from boxsup_dist.model import checkpoint

    labels = checkpoint.check(uri)
    if labels is not None:
        check_named(labels, storage.absolute(run_dir))


def boxes_to_label(sources: Sequence[Source]) -> list[pa.Table] | None:
    """The columns _OF_A_BOX of all boxes that a run assigns, a table per unit.

    None if the records are damaged, which their own checks report.
    """
    try:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(pool.map(_boxes_of, make_units(sources)))
    except StorageError:
        raise
    except InputError:
        return None


def _boxes_of(unit: Unit) -> pa.Table:
    """The boxes to assign of one unit; reads two small columns of the records."""
    rows: list[dict[str, object]] = []
    if unit.source.supervision == "box":
        for record in unit.source.records.read(unit.where, ("image_id", "class_ids")).to_pylist():
            boxes = enumerate(record["class_ids"])
            rows += [{"image_id": record["image_id"], "box_index": k, "class_id": class_id} for k, class_id in boxes]
    return pa.Table.from_pylist(rows, schema=pa.schema([LABELS.field(name) for name in _OF_A_BOX]))


def labels_checks(uri: str, boxes: Sequence[pa.Table] | None) -> list[Check]:
    """Checks of each shard of a labels table, and of which boxes it labels.

    Args:
        uri: The labels table.
        boxes: As `boxes_to_label`; None, where the records cannot be read: only the files are checked.
    """
    try:
        table = open_labels(uri)
    except StorageError:
        raise
    except InputError as error:
        return [fails_with(error)]
    checks = [Check(partial(_check_labels, table, index, boxes)) for index in range(len(table.shards))]
    return [*checks, Check(partial(_check_units, table, boxes))]


def _check_units(table: LabelsTable, boxes: Sequence[pa.Table] | None) -> None:
    """Compare the units and their numbers of boxes, which the manifest has, with the records."""
    if boxes is None:
        return
    found = {each.unit: each.num_rows for shard in table.shards for each in shard.units}
    wanted = {unit: part.num_rows for unit, part in enumerate(boxes) if part.num_rows}
    if found != wanted or table.num_units != len(boxes):
        sizes = [(table.num_units, found), (len(boxes), wanted)]
        texts = [f"{num_units} units, {sum(rows.values())} boxes" for num_units, rows in sizes]
        raise TableError(_OTHER_BOXES, file=table.uri, field="units", value=texts[0], expected=texts[1])


def _check_labels(table: LabelsTable, index: int, boxes: Sequence[pa.Table] | None) -> None:
    """Read a whole shard of labels, and compare its boxes with those of the records."""
    uri, info = table.shard_uri(index), table.shards[index]
    rows, sizes = _read_shard(uri, info, "labels")
    _compare(uri, info, {"units": (sizes, [each.num_rows for each in info.units])})
    parts = [] if boxes is None else [boxes[each.unit] for each in info.units if each.unit < len(boxes)]
    if not parts or sum(part.num_rows for part in parts) != rows.num_rows:
        return  # _check_units reports it
    expected = pa.concat_tables(parts)
    for name in _OF_A_BOX:
        found, wanted = rows.column(name), expected.column(name)
        if not found.equals(wanted):
            row = next(i for i in range(len(found)) if found[i] != wanted[i])
            where, value = f"{name}, row {row}", found[row].as_py()
            raise TableError(_OTHER_BOXES, file=uri, field=where, value=value, expected=str(wanted[row]))
