"""A stored table: Parquet shards in a folder, and a manifest that says that the table is whole.

    OUT/build.json           kind and settings of the build, written first; a build with other settings is refused
    OUT/part-00000.parquet   a shard
    OUT/part-00000.json      its ShardInfo, written after the shard: the shard is finished
    OUT/manifest.json        all ShardInfos, counts and settings, written last: the table is whole

Readers open a table by its manifest only, so they never see a half-built table. A killed build has no manifest; the
same build, called again, keeps the finished shards. Work is cut into row groups: (shard, row group) names the same rows
for every worker.

Nothing is read that was not written: the JSON files are sealed (`io/typed_json.py`), and a ShardInfo proves the bytes
of its shard (`data/parquet.py`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NamedTuple, TypeVar

import pyarrow as pa
from annotated_types import Ge

from boxsup_dist.data import parquet
from boxsup_dist.data.parquet import Proof, ProvedFile
from boxsup_dist.data.schema import SCHEMA_VERSION, SCHEMAS, check_schema
from boxsup_dist.errors import InputError, TableError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import fingerprint, parse_sealed, write_sealed

BUILD, MANIFEST = "build.json", "manifest.json"
MAX_FAILED_SHARE = 0.05  # proposals and label maps are refused if more of their images failed
T = TypeVar("T")
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
class ShardInfo(Proof):
    """The manifest's entry of one shard."""

    file: str
    row_groups: list[Annotated[int, Ge(1)]]  # number of rows of each row group
    ids: str  # fingerprint of the image ids: partner tables have the same one
    counts: dict[str, Annotated[int, Ge(0)]] = field(default_factory=dict)  # the manifest has their sums
    problems: list[dict[str, str]] = field(default_factory=list)  # {image_id, problem} of what was skipped
    row_ms: list[Annotated[int, Ge(0)]] = field(default_factory=list)  # computing time of each row; empty: not measured

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
            TableError: If the shard is not the one that the manifest means; names its file.
        """
        return self._open(where.shard).read([where.row_group], columns)

    def read_shards(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of the whole table, one shard at a time.

        For small columns, which are read faster than the file is opened. Raises TableError as `read`.
        """
        for index, shard in enumerate(self.shards):
            yield self._open(index).read(range(len(shard.row_groups)), columns)

    def row_group_bytes(self, where: RowGroup) -> dict[str, int]:
        """Return the stored bytes of each column of one row group."""
        return self._open(where.shard).column_bytes(where.row_group)

    def shard_uri(self, index: int) -> str:
        """Return the URI of a shard."""
        return storage.join(self.uri, self.shards[index].file)

    def _open(self, index: int) -> ProvedFile:
        uri, info = self.shard_uri(index), self.shards[index]
        file = ProvedFile(uri, info)
        check_schema(file.schema, self.kind, file=uri)
        if file.row_groups != info.row_groups:
            problem = "the shard has other rows than its manifest says: delete the table and build it again"
            raise TableError(problem, file=uri, value=file.row_groups, expected=str(info.row_groups))
        return file


@dataclass(frozen=True)
class _Build:
    """build.json."""

    kind: str
    schema_version: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Manifest(_Build):
    """manifest.json."""

    num_rows: Annotated[int, Ge(1)]
    counts: dict[str, Annotated[int, Ge(0)]]
    fingerprint: str
    shards: list[ShardInfo]


def open_table(uri: str, kind: str | None) -> Table:
    """Open a whole table.

    Args:
        uri: Its folder.
        kind: The kind of table that is expected there, a key of schema.SCHEMAS; None: any.

    Raises:
        TableError: If the table is absent, unfinished, damaged, of another kind or schema version, or if its manifest
            names a shard outside the folder.
    """
    uri = storage.absolute(uri)
    path = storage.join(uri, MANIFEST)
    if not storage.exists(path):
        started = storage.exists(storage.join(uri, BUILD))
        command = f"; python -m jobs.build_{kind} makes it" if kind else ""
        raise TableError(
            "the table is unfinished: run the command that builds it again; it continues where it stopped"
            if started
            else "no table here",
            file=uri,
            expected=f"a {kind or 'stored'} table with {MANIFEST}{command}",
        )
    manifest = _read(_Manifest, path)
    if manifest.kind != kind and (kind is not None or manifest.kind not in SCHEMAS):
        expected = kind or " or ".join(SCHEMAS)
        problem = "this is another kind of table"
        raise TableError(problem, file=path, field="kind", value=manifest.kind, expected=expected)
    for shard in manifest.shards:
        _check_name(shard, path)
    num_rows = sum(shard.num_rows for shard in manifest.shards)
    if manifest.num_rows != num_rows:
        problem = "the row groups do not add up to the rows: delete the table and build it again"
        raise TableError(problem, file=path, field="num_rows", value=manifest.num_rows, expected=str(num_rows))
    return Table(
        uri=uri,
        kind=manifest.kind,
        settings=manifest.settings,
        shards=manifest.shards,
        counts=manifest.counts,
        fingerprint=manifest.fingerprint,
    )


def _read(kind: type[T], path: str) -> T:
    """Read one of the table's JSON files; TableError if it is damaged or another version wrote the table."""
    data = storage.read_bytes(path)
    try:
        value = storage.parse_json(data, file=path)
        version = value.get("schema_version", SCHEMA_VERSION) if isinstance(value, dict) else SCHEMA_VERSION
        if version == SCHEMA_VERSION:
            return parse_sealed(kind, value, file=path)
    except InputError as error:
        problem = f"{error.problem}: delete this file and run the command that built the table again"
        raise error.at(problem=problem, kind=TableError) from None
    name = value.get("kind")
    command = f"python -m jobs.build_{name}" if str(name) in SCHEMAS else "the command that built it"
    raise TableError(
        f"the table has the schema of another version of boxsup_dist: delete its folder and run {command} again",
        file=path,
        field="schema_version",
        value=version,
        expected=str(SCHEMA_VERSION),
    )


def _check_name(shard: ShardInfo, file: str) -> None:
    if not re.fullmatch(r"part-\d{5,}\.parquet", shard.file):
        problem = "the manifest names a file that is no shard of this table"
        expected = f"{shard_name(0)}.parquet or another number, in the table's own folder"
        raise TableError(problem, file=file, field="shards.file", value=shard.file, expected=expected)


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
    wanted = _Build(kind, SCHEMA_VERSION, json.loads(json.dumps(settings)))
    path = storage.join(uri, BUILD)
    if not storage.exists(path):
        write_sealed(path, asdict(wanted))
    found = _read(_Build, path)
    if found != wanted:
        names = sorted({*found.settings, *wanted.settings})
        differing = [name for name in names if found.settings.get(name) != wanted.settings.get(name)]
        raise TableError(
            "the folder holds a build with other settings: choose another --out, or delete the folder",
            file=uri,
            field=", ".join(differing) or "kind",
            value={name: found.settings.get(name) for name in differing} or found.kind,
            expected=str({name: wanted.settings.get(name) for name in differing} or kind),
        )
    return open_table(uri, kind) if storage.exists(storage.join(uri, MANIFEST)) else None


def shard_name(index: int) -> str:
    """Return the file name of a shard, without its suffix."""
    return f"part-{index:05d}"


def finished_shard(uri: str, index: int) -> ShardInfo | None:
    """Return the ShardInfo of a shard that an earlier call finished, None for any other shard."""
    path = storage.join(uri, shard_name(index) + ".json")
    if not storage.exists(path):
        return None
    info = _read(ShardInfo, path)
    _check_name(info, path)
    return info


def encode_shard(table: pa.Table, kind: str, row_group_size: int) -> memoryview:
    """Encode rows of a kind of table as the Parquet bytes of a shard, in row groups of `row_group_size` rows."""
    return parquet.encode(table, row_group_size, **_ENCODING.get(kind, {}))


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
        ids=fingerprint(table.column("image_id").to_pylist()),
        counts=counts or {},
        problems=problems or [],
        row_ms=row_ms or [],
        **asdict(parquet.prove(data)),
    )
    write_sealed(storage.join(uri, name + ".json"), asdict(info))
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
    manifest = _Manifest(
        kind=kind,
        schema_version=SCHEMA_VERSION,
        num_rows=num_rows,
        counts=dict(sorted(counts.items())),
        fingerprint=fingerprint([kind, settings, [shard.sha256 for shard in shards]]),
        settings=settings,
        shards=list(shards),
    )
    write_sealed(storage.join(uri, MANIFEST), asdict(manifest))
    return open_table(uri, kind)


def check_paired(records: Table, partner: Table) -> None:
    """Check that a partner table (proposals, label maps) was made from a records table, row by row.

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
        for name, what in (("row_groups", "row groups"), ("ids", "image ids")):
            if getattr(ours, name) != getattr(theirs, name):
                raise TableError(
                    f"a shard has other {what} than its records: build this table again from {records.uri}",
                    file=storage.join(partner.uri, theirs.file),
                    field=name,
                    value=getattr(theirs, name),
                    expected=str(getattr(ours, name)),
                )
    if len(records.shards) != len(partner.shards):
        raise TableError(
            f"the table has another number of shards than its records: build it again from {records.uri}",
            file=partner.uri,
            field="shards",
            value=len(partner.shards),
            expected=str(len(records.shards)),
        )
