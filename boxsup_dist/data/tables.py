"""A stored table: Parquet shards in a folder and one manifest, written last, that readers trust alone.

    OUT/build.json           kind and settings of the build, written first; another build is refused
    OUT/part-00000.parquet   shard
    OUT/part-00000.json      its ShardInfo, written after the shard: that shard is done
    OUT/manifest.json        all ShardInfos, counts, settings; its presence means that the table is whole

A killed build leaves no manifest, so nobody reads it; the next call with the same settings keeps the finished shards.
Work is addressed by row group: (shard, row group) is a fixed slice of rows, whoever works on it.
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
# Superpixel ids and boxes are two bytes of which the high one hardly changes: apart they take least.
# jobs.proposal_quality prints what each column takes.
_ENCODING: dict[str, dict[str, Any]] = {
    "proposals": {
        "split_bytes": ["membership.list.element.list.element", "proposal_boxes.list.element.list.element"],
        "level": 12,  # 18 takes eight times as long for 7 % less
    }
}


class RowGroup(NamedTuple):
    """A fixed slice of a table."""

    shard: int
    row_group: int
    num_rows: int


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of one shard."""

    file: str
    row_groups: list[int]  # rows in each row group
    num_bytes: int
    sha256: str
    counts: dict[str, int] = field(default_factory=dict)  # added up over shards
    problems: list[dict[str, str]] = field(default_factory=list)  # {image_id, problem}: counted, reported skips
    row_ms: list[int] = field(default_factory=list)  # computing time of each row, where it was measured

    @property
    def num_rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class Table:
    """An opened, whole table."""

    uri: str
    kind: str
    settings: dict[str, Any]
    shards: list[ShardInfo]
    counts: dict[str, int]
    fingerprint: str  # hash of kind, settings and every shard's content

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a records table, background first."""
        return tuple(self.settings["classes"])

    def row_groups(self) -> list[RowGroup]:
        """Every fixed slice, in table order."""
        return [RowGroup(s, g, rows) for s, shard in enumerate(self.shards) for g, rows in enumerate(shard.row_groups)]

    def read(self, where: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group, all columns or some."""
        uri = storage.join(self.uri, self.shards[where.shard].file)
        file = storage.open_parquet(uri)
        check_schema(file.schema_arrow, self.kind, file=uri)
        return file.read_row_group(where.row_group, columns=list(columns) if columns else None)

    def read_shards(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some small columns of the whole table, a shard at a time: opening a file takes longer than reading them."""
        for shard in self.shards:
            uri = storage.join(self.uri, shard.file)
            file = storage.open_parquet(uri)
            check_schema(file.schema_arrow, self.kind, file=uri)
            yield file.read(columns=list(columns))

    def row_group_bytes(self, where: RowGroup) -> dict[str, int]:
        """Stored size of each column of one row group."""
        file = storage.open_parquet(storage.join(self.uri, self.shards[where.shard].file))
        group = file.metadata.row_group(where.row_group)
        columns = [group.column(c) for c in range(group.num_columns)]
        return {column.path_in_schema.split(".")[0]: column.total_compressed_size for column in columns}


def fingerprint(value: Any) -> str:
    """Short stable hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def open_table(uri: str, kind: str) -> Table:
    """Open a whole table. TableError if it is absent, unfinished, of another kind or schema version, or names a
    shard outside its folder.
    """
    uri = storage.absolute(uri)
    path = storage.join(uri, MANIFEST)
    if not storage.exists(path):
        started = storage.exists(storage.join(uri, "build.json"))
        raise TableError(
            "the table is unfinished: run the command that builds it again, it continues"
            if started
            else "no table here",
            file=uri,
            expected=f"a {kind} table with {MANIFEST}; python -m jobs.build_{kind} makes it",
        )
    manifest = storage.read_json(path)
    if manifest.get("kind") != kind:
        raise TableError("another kind of table", file=path, field="kind", value=manifest.get("kind"), expected=kind)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise TableError(
            "the table has the schema of another version; build it again",
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
        expected = f"{shard_name(0)}.parquet: a shard lies in its table's folder"
        raise TableError("no shard of this table", file=manifest, field="shards.file", value=file, expected=expected)
    return ShardInfo(**{key: value for key, value in values.items() if key != "num_rows"})


def begin(uri: str, kind: str, settings: dict[str, Any]) -> Table | None:
    """Start or continue a build. Returns the table if the very same one is whole already.

    Raises TableError if the folder holds a build of another kind or with other settings.
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
                "the folder holds a build with other settings; choose another --out or delete it",
                file=uri,
                field=", ".join(differing) or "kind, schema_version",
                value={k: found.get("settings", {}).get(k) for k in differing} or found.get("kind"),
                expected=str({k: wanted["settings"].get(k) for k in differing} or kind),
            )
    else:
        storage.write_json(path, wanted)
    return open_table(uri, kind) if storage.exists(storage.join(uri, MANIFEST)) else None


def shard_name(index: int) -> str:
    """Base name of a shard without suffix."""
    return f"part-{index:05d}"


def finished_shard(uri: str, index: int) -> ShardInfo | None:
    """The shard's info if an earlier call wrote it whole."""
    path = storage.join(uri, shard_name(index) + ".json")
    return _shard_info(storage.read_json(path), path) if storage.exists(path) else None


def encode_shard(table: pa.Table, kind: str, row_group_size: int) -> memoryview:
    """Rows of a table of this kind as the Parquet bytes of a shard."""
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
    """Write one shard and then its info; both atomically."""
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
    """Write the manifest: from here on the table is whole. TableError if it would have no row."""
    assert kind in SCHEMAS
    num_rows = sum(shard.num_rows for shard in shards)
    if num_rows == 0:
        problems = [p for shard in shards for p in shard.problems]
        raise TableError("no usable row: the table would be empty", file=uri, value=problems[:3] or None)
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
    """Raise TableError unless the partner (proposals, label maps) was made from them, row group by row group."""
    made_from = partner.settings.get("records")
    if made_from != records.fingerprint:
        raise TableError(
            f"the {partner.kind.replace('_', ' ')} were made from other records than {records.uri}",
            file=partner.uri,
            field="settings.records",
            value=made_from,
            expected=records.fingerprint,
        )
    for ours, theirs in zip(records.shards, partner.shards, strict=False):
        if ours.row_groups != theirs.row_groups:
            raise TableError(
                f"a shard has other row groups than {ours.file} of {records.uri}",
                file=storage.join(partner.uri, theirs.file),
                value=theirs.row_groups,
                expected=str(ours.row_groups),
            )
    if len(records.shards) != len(partner.shards):
        raise TableError(
            f"another number of shards than {records.uri}",
            file=partner.uri,
            value=len(partner.shards),
            expected=str(len(records.shards)),
        )
