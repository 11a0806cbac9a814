"""The labels table of one epoch: the segment that was chosen for every box, in the order of the run's mixture.

A labels table is one small Parquet file. Its metadata stores where the rows of each unit (a row group of a source)
begin, so a task that works on one unit takes its slice without a search. The file holds the hash of its own bytes.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from boxsup_dist.data import parquet
from boxsup_dist.data.painting import Segment
from boxsup_dist.data.schema import LABELS, check_schema
from boxsup_dist.errors import TableError
from boxsup_dist.io import storage

# Number of small tables (of a few boxes each) that are joined at once. Thousands of small tables take several times the
# memory of their rows.
JOINED_AT_ONCE = 64
_OFFSETS = b"unit_offsets"
_HASHED = b"hash"  # a file without this name was written before labels files held a hash


@dataclass(frozen=True)
class Labels:
    """All boxes of a mixture with their chosen segments."""

    table: pa.Table  # of the labels schema
    offsets: NDArray[np.int64]  # (units + 1,): rows offsets[u]:offsets[u + 1] belong to unit u of the mixture

    @classmethod
    def concatenate(cls, parts: Iterable[pa.Table]) -> Labels:
        """Join one table per unit, in the order of the units; the table of a unit without boxes to assign is empty."""
        offsets, joined, waiting = [0], [labels_table([])], list[pa.Table]()
        for part in parts:
            offsets.append(offsets[-1] + part.num_rows)
            waiting.append(part)
            if len(waiting) == JOINED_AT_ONCE:
                joined.append(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
        return cls(pa.concat_tables([*joined, *waiting]).combine_chunks(), np.asarray(offsets))

    def segments(self, unit_index: int) -> dict[str, list[Segment | None]]:
        """Return the chosen segments of one unit, as `segments_by_box`; TableError if there is no such unit."""
        if unit_index >= len(self.offsets) - 1:
            problem = "the labels were made for other tables: use the labels of this run"
            raise TableError(problem, field="units", value=len(self.offsets) - 1, expected=f"{unit_index + 1} or more")
        start, stop = self.offsets[unit_index : unit_index + 2]
        return segments_by_box(self.table.slice(start, stop - start))

    def to_parquet(self) -> bytes:
        """Return the bytes of the labels file, which `read_labels` reads."""
        metadata = {_OFFSETS: json.dumps(self.offsets.tolist()).encode(), _HASHED: b"SHA-256, before the footer"}
        sink = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
        return parquet.with_hash(sink.getvalue())


def read_labels(uri: str) -> Labels:
    """Read a labels file.

    Raises:
        TableError: If the file is damaged or not a labels table.
        MissingFileError: If there is no such file.
    """
    data = storage.read_bytes(uri)
    content = parquet.without_hash(data)
    with parquet.decoding_parquet(uri):
        if content is None and _HASHED in (pq.read_schema(io.BytesIO(data)).metadata or {}):
            problem = "the labels file is damaged: copy it from its checkpoint (labels.parquet), or train the run again"
            raise TableError(problem, file=uri, expected="the bytes whose hash it holds")
        table = pq.read_table(io.BytesIO(content or data))
    check_schema(table.schema, "labels", file=uri)
    offsets = _unit_offsets(table, uri)
    # Parquet gives the items of lists other names; the cast restores the schema, so the file is written as it was.
    return Labels(table.cast(LABELS).combine_chunks(), offsets)


def _unit_offsets(table: pa.Table, uri: str) -> NDArray[np.int64]:
    stored = (table.schema.metadata or {}).get(_OFFSETS)
    if stored is None:
        raise TableError("the labels table lacks its unit offsets", file=uri, field=_OFFSETS.decode())
    offsets = storage.parse_json(stored, file=uri)
    is_whole = isinstance(offsets, list) and offsets[:1] == [0] and offsets[-1] == table.num_rows
    if not is_whole or not all(type(o) is int for o in offsets) or any(a > b for a, b in itertools.pairwise(offsets)):
        expected = f"whole numbers that rise from 0 to {table.num_rows}"
        raise TableError("not the labels of a run", file=uri, field=_OFFSETS.decode(), value=offsets, expected=expected)
    return np.asarray(offsets)


def segments_by_box(labels: pa.Table) -> dict[str, list[Segment | None]]:
    """Group the rows of a labels table by image.

    Returns:
        The chosen segments of every image_id, indexed by box_index; None for a box without a candidate. An image
        without boxes has no entry.
    """
    segments: dict[str, list[Segment | None]] = {}
    columns = [labels.column(name).to_pylist() for name in ("image_id", "box_index", "proposal_index")]
    chosen, undecided = _lists(labels, "superpixel_ids"), _lists(labels, "undecided_ids")
    for row, (image_id, box, proposal) in enumerate(zip(*columns, strict=True)):
        boxes = segments.setdefault(image_id, [])
        boxes.extend([None] * (box + 1 - len(boxes)))
        boxes[box] = Segment(chosen[row], undecided[row]) if proposal >= 0 else None
    return segments


def _lists(table: pa.Table, name: str) -> list[NDArray[np.uint16]]:
    """Return one array per row of a column of lists, without a copy."""
    column = table.column(name).combine_chunks()
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


def summarise(labels: Labels, previous: Labels | None) -> dict[str, float]:
    """Summarise an epoch's labels.

    Args:
        labels: The labels of the epoch.
        previous: The labels of the epoch before, of the same boxes; None for the first epoch.

    Returns:
        `share_without_candidate`, 0 if there is no box; `mean_overlap_cost` and `mean_regression_cost` over the boxes
        with a candidate, absent if there is none; `share_changed`, the share of boxes with another candidate than in
        `previous`, absent without `previous` or if it has other boxes (of an earlier version, which labelled images
        that the run leaves out).
    """
    table = labels.table
    proposal = table.column("proposal_index").to_numpy()
    found = proposal >= 0
    summary = {"share_without_candidate": float(1 - found.mean()) if len(found) else 0.0}
    if found.any():
        for name in ("overlap_cost", "regression_cost"):
            summary[f"mean_{name}"] = float(table.column(name).to_numpy()[found].mean())
    if previous is not None and len(proposal) and len(proposal) == previous.table.num_rows:
        before = previous.table.column("proposal_index").to_numpy()
        summary["share_changed"] = float((proposal != before).mean())
    return summary


def labels_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Convert rows, one per box with the columns of schema.LABELS as keys, to an Arrow table of that schema."""
    return pa.Table.from_pylist(rows, schema=LABELS)
