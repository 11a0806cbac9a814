"""The labels table of one epoch: the segment that was chosen for every box, in the order of the run's mixture.

    RUN/labels/epoch-003/part-00000-00007.parquet   the labels of the units 0 to 7, one row group per unit
    RUN/labels/epoch-003/manifest.json              every shard with its proof, written last: the table is whole

A unit is a row group of a source; units without a box have no row group. Those who assign a unit write its labels
(`write_shard`); one process then publishes what they report, and holds no labels itself. Which units share a shard
depends on who wrote them. Rows, their order and the fingerprint do not: they are functions of the units alone.

A killed reassignment leaves no manifest. Shards of an earlier attempt do no harm: the manifest names the files of its
table and proves their bytes (`data/parquet.py`).
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Ge
from numpy.typing import NDArray

from boxsup_dist.data import parquet
from boxsup_dist.data.painting import Segment
from boxsup_dist.data.parquet import Proof, ProvedFile
from boxsup_dist.data.schema import LABELS, check_schema
from boxsup_dist.errors import InputError, TableError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import fingerprint, parse_sealed, write_sealed

MANIFEST = "manifest.json"
FORMAT_VERSION = 1  # of the manifest; before it, the labels of an epoch were one file
_SEGMENT_COLUMNS = (
    "image_id",
    "box_index",
    "proposal_index",
    "superpixel_ids",
    "undecided_ids",
    "undecided_probability",
)
_ADDED = "undecided_probability"  # labels of earlier versions lack this column; nothing of theirs is completed
_ANEW = "to make the labels again, delete the run's checkpoints that are newer than this folder and train again"


@dataclass(frozen=True)
class LabelledUnit:
    """What the manifest says of one row group."""

    unit: Annotated[int, Ge(0)]  # index in the mixture
    num_rows: Annotated[int, Ge(1)]  # boxes
    num_found: Annotated[int, Ge(0)]  # boxes with a candidate
    overlap_cost: float  # sums over these boxes
    regression_cost: float
    num_changed: int | None  # boxes with another candidate than in the previous epoch; None: there was none


@dataclass(frozen=True)
class LabelsShard(Proof):
    """The manifest's entry of one shard."""

    file: str
    units: list[LabelledUnit]  # of each row group, in the order of the mixture

    def repair(self, uri: str) -> str:
        """What a user does about a damaged or missing shard."""
        return _ANEW


@dataclass(frozen=True)
class TableName:
    """What a checkpoint keeps of a labels table."""

    name: str  # path below the run directory
    fingerprint: str


@dataclass(frozen=True)
class LabelsTable:
    """A whole labels table, opened by its manifest; no labels are read yet."""

    uri: str
    folder: str  # name of the folder with the shards, beside this one where an epoch repeats another epoch's labels
    num_units: int  # of the mixture
    shards: list[LabelsShard]
    fingerprint: str  # of the labels of every unit, whatever the shards

    @functools.cached_property
    def places(self) -> dict[int, tuple[int, int]]:
        """(shard, row group) of every unit that has a box."""
        return {each.unit: (s, g) for s, shard in enumerate(self.shards) for g, each in enumerate(shard.units)}

    @property
    def num_rows(self) -> int:
        """Number of boxes."""
        return sum(each.num_rows for shard in self.shards for each in shard.units)

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    def shard_uri(self, index: int) -> str:
        """Return the URI of a shard."""
        return storage.join(_beside(self.uri, self.folder), self.shards[index].file)

    def named(self, run_dir: str) -> TableName:
        """What a checkpoint of this run keeps of the table."""
        return TableName(self.uri.removeprefix(storage.absolute(run_dir)).strip("/"), self.fingerprint)

    def read(self, unit_index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the labels of one unit: the footer of a shard and one row group.

        Args:
            unit_index: Index of the unit in the mixture.
            columns: Names of the columns to read; None reads all.

        Returns:
            Rows of the labels table; none for a unit without boxes to assign.

        Raises:
            TableError: There is no such unit, or the shard is not the one that the manifest means.
        """
        if unit_index >= self.num_units:
            problem = "the labels were made for other tables: use the labels of this run"
            expected = f"{unit_index + 1} or more"
            raise TableError(problem, file=self.uri, field="num_units", value=self.num_units, expected=expected)
        schema = LABELS if columns is None else pa.schema([LABELS.field(name) for name in columns])
        if unit_index not in self.places:
            return schema.empty_table()
        shard, group = self.places[unit_index]
        file = ProvedFile(self.shard_uri(shard), self.shards[shard])
        names = schema.names
        if file.schema.get_field_index(_ADDED) >= 0:
            check_schema(file.schema, "labels", file=self.shard_uri(shard))
        else:
            check_schema(file.schema.append(LABELS.field(_ADDED)), "labels", file=self.shard_uri(shard))
            names = [name for name in names if name != _ADDED]
        found = file.read([group], names)
        if len(names) < len(schema):
            found = found.append_column(
                LABELS.field(_ADDED), pa.array([[]] * found.num_rows, LABELS.field(_ADDED).type)
            )
        # Parquet gives the items of lists other names; the cast restores the schema.
        return found.select(schema.names).cast(schema).combine_chunks()

    def read_all(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the whole table, for comparisons of small ones; raises as `read`."""
        empty = LABELS.empty_table().select(columns or LABELS.names)
        return pa.concat_tables([empty, *(self.read(unit, columns) for unit in self.places)])

    def segments(self, unit_index: int) -> dict[str, list[Segment | None]]:
        """Read the chosen segments of one unit, as `segments_by_box`; raises as `read`."""
        return segments_by_box(self.read(unit_index, _SEGMENT_COLUMNS))

    def summary(self) -> dict[str, float]:
        """Summarise the labels by the sums in the manifest; they do not depend on the order of the units.

        Returns:
            `share_without_candidate`, 0 if there is no box; `mean_overlap_cost` and `mean_regression_cost` over the
            boxes with a candidate, absent if there is none; `share_changed`, the share of boxes with another candidate
            than in the epoch before, absent without one.
        """
        units = [each for shard in self.shards for each in shard.units]
        num_boxes, num_found = sum(each.num_rows for each in units), sum(each.num_found for each in units)
        summary = {"share_without_candidate": 1 - num_found / num_boxes if num_boxes else 0.0}
        if num_found:
            summary["mean_overlap_cost"] = math.fsum(each.overlap_cost for each in units) / num_found
            summary["mean_regression_cost"] = math.fsum(each.regression_cost for each in units) / num_found
        changed = [each.num_changed for each in units if each.num_changed is not None]
        if units and len(changed) == len(units):
            summary["share_changed"] = sum(changed) / num_boxes
        return summary


# -- writing ----------------------------------------------------------------------------------------------------------


def begin(uri: str) -> None:
    """Withdraw the table that an earlier attempt left, before its shards are written again."""
    storage.remove(storage.join(uri, MANIFEST))


def write_shard(uri: str, tables: Mapping[int, pa.Table], previous: LabelsTable | None = None) -> LabelsShard | None:
    """Write the labels of some units as one shard.

    Any process may write any consecutive units, also twice: the file of the same units has the same bytes.

    Args:
        uri: Folder of the table.
        tables: Rows of the labels table by the index of their unit, in the order of the mixture.
        previous: The labels of the epoch before, to count the boxes whose candidate changed.

    Returns:
        What `publish` needs of the shard; None, and no file, if no unit has a box.

    Raises:
        TableError: `previous` is damaged or of other boxes.
    """
    found = {unit: table for unit, table in tables.items() if table.num_rows}
    if not found:
        return None
    units = [_describe(unit, table, previous) for unit, table in found.items()]
    data = parquet.encode_groups(found.values())
    name = f"part-{min(tables):05d}-{max(tables):05d}.parquet"  # both: what other members get may begin alike
    storage.write_bytes(storage.join(uri, name), data)
    return LabelsShard(file=name, units=units, **asdict(parquet.prove(data)))


def _describe(unit: int, table: pa.Table, previous: LabelsTable | None) -> LabelledUnit:
    proposal = table.column("proposal_index").to_numpy()
    found = proposal >= 0
    sums = [math.fsum(table.column(name).to_numpy()[found].tolist()) for name in ("overlap_cost", "regression_cost")]
    num_changed = None
    if previous is not None:
        before = previous.read(unit, ("proposal_index",)).column("proposal_index").to_numpy()
        if len(before) != len(proposal):
            problem = "the labels of the epoch before are of other boxes: use the labels of this run"
            where = f"unit {unit}, boxes"
            raise TableError(problem, file=previous.uri, field=where, value=len(before), expected=str(len(proposal)))
        num_changed = int((proposal != before).sum())
    return LabelledUnit(unit, table.num_rows, int(found.sum()), sums[0], sums[1], num_changed)


def publish(uri: str, shards: Iterable[LabelsShard | None], num_units: int) -> LabelsTable:
    """Write the manifest, which makes the table whole, and open the table.

    Args:
        uri: Folder of the table.
        shards: What `write_shard` returned for all units, in any order.
        num_units: Units of the mixture, with those that have no box.
    """
    kept = sorted((shard for shard in shards if shard is not None), key=lambda shard: shard.units[0].unit)
    return _publish(uri, _name(uri), kept, num_units)


def publish_again(uri: str, previous: LabelsTable) -> LabelsTable:
    """Publish the labels of the epoch before as those of another epoch: its manifest names the same files."""
    units = [[replace(each, num_changed=0) for each in shard.units] for shard in previous.shards]
    shards = [replace(shard, units=each) for shard, each in zip(previous.shards, units, strict=True)]
    return _publish(uri, previous.folder, shards, previous.num_units)


def store_labels(uri: str, parts: Iterable[pa.Table], previous: LabelsTable | None = None) -> LabelsTable:
    """Store a table from this process: rows of the labels table for every unit of the mixture, in their order."""
    shards, num_units = [], 0
    for num_units, part in enumerate(parts, 1):
        shards.append(write_shard(uri, {num_units - 1: part}, previous))
    return publish(uri, shards, num_units)


@dataclass(frozen=True)
class _Manifest:
    """manifest.json."""

    format_version: int
    folder: str
    num_units: Annotated[int, Ge(0)]
    fingerprint: str
    shards: list[LabelsShard]


def _publish(uri: str, folder: str, shards: list[LabelsShard], num_units: int) -> LabelsTable:
    manifest = _Manifest(FORMAT_VERSION, folder, num_units, _fingerprint(shards, num_units), shards)
    write_sealed(storage.join(uri, MANIFEST), asdict(manifest))
    return LabelsTable(storage.absolute(uri), folder, num_units, shards, manifest.fingerprint)


def _fingerprint(shards: Sequence[LabelsShard], num_units: int) -> str:
    """A hash of the labels: the CRCs of a row group's columns are the same in any shard."""
    crcs = [(each.unit, crc) for shard in shards for each, crc in zip(shard.units, shard.chunk_crcs, strict=False)]
    return fingerprint([num_units, crcs])


# -- reading ----------------------------------------------------------------------------------------------------------


def open_labels(uri: str) -> LabelsTable:
    """Open a whole labels table.

    Raises:
        TableError: The table is absent, unfinished or damaged, or an earlier version of boxsup_dist wrote it.
    """
    uri = storage.absolute(uri)
    path = storage.join(uri, MANIFEST)
    if not storage.exists(path):
        problem = "no labels here"
        if storage.exists(uri):
            problem = "unfinished labels: the command that makes them, run again, makes them whole"
        elif storage.exists(uri + ".parquet"):
            problem = (
                "an earlier version of boxsup_dist stored these labels as one file: train the run again in another "
                "directory; to begin with its network, use --network.weights checkpoint:RUN_DIR"
            )
        raise TableError(problem, file=uri, expected=f"a labels table with {MANIFEST}")
    data = storage.read_bytes(path)
    try:
        manifest = parse_sealed(_Manifest, storage.parse_json(data, file=path), file=path)
        _check(manifest, path)
    except InputError as error:
        raise error.at(problem=f"{error.problem}: {_ANEW}", kind=TableError) from None
    return LabelsTable(uri, manifest.folder, manifest.num_units, manifest.shards, manifest.fingerprint)


def check_named(table: TableName, run_dir: str) -> None:
    """Check that the labels that a checkpoint names are still the run's.

    Raises:
        TableError: The table is absent, damaged, or another one.
    """
    uri = storage.join(run_dir, table.name)
    found = open_labels(uri).fingerprint
    if found != table.fingerprint:
        problem = f"these are not the labels that the checkpoint was trained on: {_ANEW}"
        raise TableError(problem, file=uri, field="fingerprint", value=found, expected=table.fingerprint)


def _check(manifest: _Manifest, file: str) -> None:
    """TableError unless the manifest fits itself and names files of its own or a neighbouring folder only."""
    units = [each.unit for shard in manifest.shards for each in shard.units]
    found: dict[str, tuple[object, object]] = {
        "format_version": (manifest.format_version, FORMAT_VERSION),
        "chunk_crcs": ([len(s.chunk_crcs) for s in manifest.shards], [len(s.units) for s in manifest.shards]),
        "units": (units, sorted({unit for unit in units if unit < manifest.num_units})),
        "fingerprint": (manifest.fingerprint, _fingerprint(manifest.shards, manifest.num_units)),
    }
    for field, (value, expected) in found.items():
        if value != expected:
            problem = "not the manifest of a labels table of this version"
            raise TableError(problem, file=file, field=field, value=value, expected=str(expected))
    names = [("folder", manifest.folder, r"[^./][^/]*")]
    names += [("shards.file", shard.file, r"part-\d{5,}-\d{5,}\.parquet") for shard in manifest.shards]
    for field, name, pattern in names:
        if not re.fullmatch(pattern, name):
            problem = "the manifest names a file that is no shard of this table"
            raise TableError(problem, file=file, field=field, value=name, expected=f"a name like {pattern}")


def _beside(uri: str, folder: str) -> str:
    return storage.join(uri.rpartition("/")[0], folder)


def _name(uri: str) -> str:
    return storage.absolute(uri).rpartition("/")[2]


def segments_by_box(labels: pa.Table) -> dict[str, list[Segment | None]]:
    """Group the rows of a labels table by image.

    Returns:
        The chosen segments of every image_id, indexed by box_index; None for a box without a candidate. An image
        without boxes has no entry.
    """
    segments: dict[str, list[Segment | None]] = {}
    columns = [labels.column(name).to_pylist() for name in ("image_id", "box_index", "proposal_index")]
    chosen, undecided = _lists(labels, "superpixel_ids"), _lists(labels, "undecided_ids")
    belief = _lists(labels, "undecided_probability")
    for row, (image_id, box, proposal) in enumerate(zip(*columns, strict=True)):
        boxes = segments.setdefault(image_id, [])
        boxes.extend([None] * (box + 1 - len(boxes)))
        boxes[box] = Segment(chosen[row], undecided[row], belief[row]) if proposal >= 0 else None
    return segments


def _lists(table: pa.Table, name: str) -> list[NDArray[Any]]:
    """Return one array per row of a column of lists, without a copy."""
    column = table.column(name).combine_chunks()
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


def labels_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Convert rows, one per box with the columns of schema.LABELS as keys, to an Arrow table of that schema."""
    return pa.Table.from_pylist(rows, schema=LABELS)
