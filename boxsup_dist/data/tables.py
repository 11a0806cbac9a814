"""A stored table: Parquet shards in a folder, and a manifest that says that the table is whole.

    OUT/build.json           kind and settings of the build, written first; a build with other settings is refused
    OUT/part-00000.parquet   a shard
    OUT/part-00000.json      its ShardInfo, written after the shard: the shard is finished
    OUT/manifest.json        all ShardInfos, counts and settings, written last: the table is whole

Readers open a table by its manifest only, so they never see a half-built table. A killed build has no manifest; the
same build, called again, keeps the finished shards. Work is cut into row groups: (shard, row group) names the same rows
for every worker.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from boxsup_dist.data.schema import SCHEMA_VERSION, SCHEMAS, check_schema
from boxsup_dist.errors import TableError
from boxsup_dist.io import storage

MANIFEST = "manifest.json"
MAX_FAILED_SHARE = 0.05  # proposals and label maps are refused if more of their images failed
# Superpixel ids and boxes are two bytes, and the high byte hardly changes: stored apart they take the least space.
# jobs.proposal_quality prints the stored bytes of each column.
_ENCODING: dict[str, dict[str, Any]] = {
    "proposals": {
        "split_bytes": ["membership.list.element.list.element", "proposal_boxes.list.element.list.element"],
        "level": 12,  # 18 takes eight times as long for 7 % less
    }
}


class RowGroup(NamedTuple):
    """A fixed slice of a table: row group `row_group` of shard `shard`, both counted from 0."""

    shard: int
    row_group: int
    num_rows: int


@dataclass(frozen=True)
class ShardInfo:
    """The manifest's entry of one shard."""

    file: str
    row_groups: list[int]  # number of rows of each row group
    num_bytes: int
    sha256: str
    counts: dict[str, int] = field(default_factory=dict)  # the manifest has their sums over all shards
    problems: list[dict[str, str]] = field(default_factory=list)  # {image_id, problem} of what was skipped
    row_ms: list[int] = field(default_factory=list)  # computing time of each row; empty: not measured

    @property
    def num_rows(self) -> int:
        """Number of rows of the shard."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class Table:
    """A whole table, opened by its manifest."""

    uri: str
    kind: str  # a key of schema.SCHEMAS
    settings: dict[str, Any]
    shards: list[ShardInfo]
    counts: dict[str, int]
    fingerprint: str  # hash of kind, settings and every shard's content

    @property
    def num_rows(self) -> int:
        """Number of rows of the table."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a records table, background first."""
        return tuple(self.settings["classes"])

    def row_groups(self) -> list[RowGroup]:
        """Return every row group, in the order of the rows."""
        return [RowGroup(s, g, rows) for s, shard in enumerate(self.shards) for g, rows in enumerate(shard.row_groups)]

    def read(self, where: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one row group.

        Args:
            where: The row group.
            columns: Names of the columns to read; None reads all.

        Raises:
            TableError: If the shard has not the schema of this kind of table.
        """
        uri = storage.join(self.uri, self.shards[where.shard].file)
        file = storage.open_parquet(uri)
        check_schema(file.schema_arrow, self.kind, file=uri)
        return file.read_row_group(where.row_group, columns=list(columns) if columns else None)

    def read_shards(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of the whole table, one shard at a time.

        For small columns, which are read faster than the file is opened. Raises TableError as `read`.
        """
        for shard in self.shards:
            uri = storage.join(self.uri, shard.file)
            file = storage.open_parquet(uri)
            check_schema(file.schema_arrow, self.kind, file=uri)
            yield file.read(columns=list(columns))

    def row_group_bytes(self, where: RowGroup) -> dict[str, int]:
        """Return the stored bytes of each column of one row group."""
        file = storage.open_parquet(storage.join(self.uri, self.shards[where.shard].file))
        group = file.metadata.row_group(where.row_group)
        columns = [group.column(c) for c in range(group.num_columns)]
        return {column.path_in_schema.split(".")[0]: column.total_compressed_size for column in columns}


def fingerprint(value: Any) -> str:
    """Return a hash of a JSON value, 16 hex digits, that is the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def open_table(uri: str, kind: str) -> Table:
    """Open a whole table.

    Args:
        uri: Its folder.
        kind: The kind of table that is expected there, a key of schema.SCHEMAS.

    Raises:
        TableError: If the table is absent, unfinished, of another kind or schema version, or if its manifest names a
            shard outside the folder.
    """
    uri = storage.absolute(uri)
    path = storage.join(uri, MANIFEST)
    if not storage.exists(path):
        started = storage.exists(storage.join(uri, "build.json"))
        raise TableError(
            "the table is unfinished: run the command that builds it again; it continues where it stopped"
            if started
            else "no table here",
            file=uri,
            expected=f"a {kind} table with {MANIFEST}; python -m jobs.build_{kind} makes it",
        )
    manifest = storage.read_json(path)
    if manifest.get("kind") != kind:
        raise TableError(
            "this is another kind of table", file=path, field="kind", value=manifest.get("kind"), expected=kind
        )
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise TableError(
            "the table has the schema of another version of boxsup_dist: build it again",
            file=path,
            field="schema_version",
            value=manifest.get("schema_version"),
            expected=str(SCHEMA_VERSION),
        )
    return Table(
        uri=uri,
        kind=kind,
        settings=manifest["settings"],
        shards=[_shard_info(values, path) for values in manifest["shards"]],
        counts=manifest["counts"],
        fingerprint=manifest["fingerprint"],
    )


def _shard_info(values: dict[str, Any], manifest: str) -> ShardInfo:
    file = values.get("file")
    if not isinstance(file, str) or not re.fullmatch(r"part-\d{5,}\.parquet", file):
        problem = "the manifest names a file that is no shard of this table"
        expected = f"{shard_name(0)}.parquet or another number, in the table's own folder"
        raise TableError(problem, file=manifest, field="shards.file", value=file, expected=expected)
    return ShardInfo(**{key: value for key, value in values.items() if key != "num_rows"})


def begin(uri: str, kind: str, settings: dict[str, Any]) -> Table | None:
    """Start or continue a build by writing or checking its build.json.

    Args:
        uri: Folder of the table.
        kind: A key of schema.SCHEMAS.
        settings: JSON values that decide the table's content.

    Returns:
        The table if it is whole already, None if shards are missing.

    Raises:
        TableError: If the folder holds a build of another kind, schema version or settings.
    """
    wanted = {"kind": kind, "schema_version": SCHEMA_VERSION, "settings": json.loads(json.dumps(settings))}
    path = storage.join(uri, "build.json")
    if storage.exists(path):
        found = storage.read_json(path)
        if found != wanted:
            differing = sorted(
                key
                for key in {*found.get("settings", {}), *wanted["settings"]}
                if found.get("settings", {}).get(key) != wanted["settings"].get(key)
            )
            raise TableError(
                "the folder holds a build with other settings: choose another --out, or delete the folder",
                file=uri,
                field=", ".join(differing) or "kind, schema_version",
                value={k: found.get("settings", {}).get(k) for k in differing} or found.get("kind"),
                expected=str({k: wanted["settings"].get(k) for k in differing} or kind),
            )
    else:
        storage.write_json(path, wanted)
    return open_table(uri, kind) if storage.exists(storage.join(uri, MANIFEST)) else None


def shard_name(index: int) -> str:
    """Return the file name of a shard, without its suffix."""
    return f"part-{index:05d}"


def finished_shard(uri: str, index: int) -> ShardInfo | None:
    """Return the ShardInfo of a shard that an earlier call finished, None for any other shard."""
    path = storage.join(uri, shard_name(index) + ".json")
    return _shard_info(storage.read_json(path), path) if storage.exists(path) else None


def encode_shard(table: pa.Table, kind: str, row_group_size: int) -> memoryview:
    """Encode rows of a kind of table as the Parquet bytes of a shard, in row groups of `row_group_size` rows."""
    return storage.encode_parquet(table, row_group_size, **_ENCODING.get(kind, {}))


def write_shard(
    uri: str,
    index: int,
    table: pa.Table,
    kind: str,
    *,
    row_group_size: int,
    counts: dict[str, int] | None = None,
    problems: list[dict[str, str]] | None = None,
    row_ms: list[int] | None = None,
) -> ShardInfo:
    """Write one shard and then its ShardInfo, each atomically.

    Args:
        uri: Folder of the table.
        index: Number of the shard, from 0.
        table: The shard's rows; none is allowed.
        kind: A key of schema.SCHEMAS.
        row_group_size: Rows per row group; the last one may have fewer.
        counts: Numbers to add up over shards.
        problems: {image_id, problem} of what was skipped.
        row_ms: Computing time of each row.

    Raises:
        TableError: If `table` has not the schema of `kind`.
    """
    name = shard_name(index)
    check_schema(table.schema, kind, file=storage.join(uri, name))
    data = encode_shard(table, kind, row_group_size)
    storage.write_bytes(storage.join(uri, name + ".parquet"), data)
    full, rest = divmod(table.num_rows, row_group_size)
    info = ShardInfo(
        file=name + ".parquet",
        row_groups=[row_group_size] * full + ([rest] if rest else []),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        counts=counts or {},
        problems=problems or [],
        row_ms=row_ms or [],
    )
    storage.write_json(storage.join(uri, name + ".json"), asdict(info))
    return info


def publish(uri: str, kind: str, settings: dict[str, Any], shards: Sequence[ShardInfo]) -> Table:
    """Write the manifest, which makes the table whole, and open the table.

    Args:
        uri: Folder of the table.
        kind: A key of schema.SCHEMAS.
        settings: JSON values, as given to `begin`.
        shards: All shards, in the order of their rows.

    Raises:
        TableError: If the table would have no row; the message shows up to three of the shards' problems.
    """
    assert kind in SCHEMAS
    num_rows = sum(shard.num_rows for shard in shards)
    if num_rows == 0:
        problems = [p for shard in shards for p in shard.problems]
        raise TableError("the table would be empty: no row is usable", file=uri, value=problems[:3] or None)
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.counts)
    manifest = {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "num_rows": num_rows,
        "counts": dict(sorted(counts.items())),
        "fingerprint": fingerprint([kind, settings, [shard.sha256 for shard in shards]]),
        "settings": settings,
        "shards": [asdict(shard) for shard in shards],
    }
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    return open_table(uri, kind)


def check_paired(records: Table, partner: Table) -> None:
    """Check that a partner table (proposals, label maps) was made from a records table and has the same row groups.

    Raises:
        TableError: If it was not.
    """
    made_from = partner.settings.get("records")
    if made_from != records.fingerprint:
        raise TableError(
            f"the {partner.kind.replace('_', ' ')} were made from other records: build them from {records.uri}",
            file=partner.uri,
            field="settings.records",
            value=made_from,
            expected=records.fingerprint,
        )
    for ours, theirs in zip(records.shards, partner.shards, strict=False):
        if ours.row_groups != theirs.row_groups:
            raise TableError(
                f"a shard has other row groups than its records: build this table again from {records.uri}",
                file=storage.join(partner.uri, theirs.file),
                value=theirs.row_groups,
                expected=str(ours.row_groups),
            )
    if len(records.shards) != len(partner.shards):
        raise TableError(
            f"the table has another number of shards than its records: build it again from {records.uri}",
            file=partner.uri,
            field="shards",
            value=len(partner.shards),
            expected=str(len(records.shards)),
        )
